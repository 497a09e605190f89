"""The panel's style sheet; colours are the front end's own, light and dark."""

STYLE = """<style>
.hww-panel { border: 1px solid var(--jp-border-color1, #9e9e9e); border-radius: 6px; padding: 10px 12px;
  max-width: 1100px; gap: 8px; overflow: visible; color: var(--jp-ui-font-color1, #1f1f1f); }
.hww-panel .widget-html-content { line-height: 1.4; white-space: normal; }
.hww-panel .widget-html { height: auto; }
.hww-panel .widget-label { width: auto; min-width: 0; color: inherit; }
.hww-panel .widget-button { width: auto; border-radius: 4px; }
.hww-line { flex-flow: row wrap; align-items: center; gap: 4px 14px; overflow: visible; }
.hww-row { border: 1px solid var(--jp-border-color2, #bdbdbd); border-radius: 5px; padding: 6px 10px;
  gap: 4px; overflow: visible; }
.hww-row.hww-off { border-style: dashed; }
.hww-grow { flex: 1 1 200px; min-width: 0; }
.hww-name { font-weight: 600; font-family: var(--jp-code-font-family, monospace); overflow-wrap: anywhere; }
.hww-soft { color: var(--jp-ui-font-color1, #424242); font-size: 12px; }
.hww-panel dl.hww-facts { display: grid; gap: 2px 14px; margin: 0;
  grid-template-columns: minmax(110px, 1.3fr) repeat(3, minmax(70px, .7fr)) minmax(150px, 2fr); }
.hww-panel .hww-facts div, .hww-panel .hww-facts dt, .hww-panel .hww-facts dd { display: block; float: none;
  clear: none; width: auto; margin: 0; padding: 0; min-width: 0; }
.hww-panel .hww-facts dt { font-size: 11px; font-weight: 400; color: var(--jp-ui-font-color1, #424242); }
.hww-panel .hww-facts dd { font-variant-numeric: tabular-nums; font-weight: 600; overflow-wrap: anywhere; }
.hww-facts dd.hww-code { font-family: var(--jp-code-font-family, monospace); }
.hww-mode .widget-radio-box { flex-direction: row; gap: 10px; margin: 0 !important; height: auto;
  min-width: 0; }
.hww-mode .widget-radio-box label { width: auto; margin: 0; padding: 0; height: auto; line-height: 24px;
  display: flex; flex-direction: row-reverse; align-items: center; gap: 4px; }
.hww-mode .widget-radio-box input { margin: 0; height: auto; }
.hww-panel .hww-mode { display: flex; width: auto; flex-direction: row; align-items: center; gap: 8px; }
.hww-argument .widget-label { position: absolute; }
.hww-panel .hww-check { width: auto; }
.hww-check .widget-label-basic { display: flex; align-items: center; gap: 6px; width: auto; }
.hww-check input { margin: 0; }
.hww-remove { font-size: 0 !important; padding: 0 9px !important; }
.hww-remove i { font-size: 13px; }
.hww-error { border-left: 4px solid #b3261e; padding: 4px 8px; margin: 0; font-weight: 600;
  background: var(--jp-layout-color2, #f2f2f2); overflow-wrap: anywhere; }
.hww-panel details { font-size: 12px; }
.hww-panel summary { cursor: pointer; }
.hww-panel details ul { margin: 2px 0 2px 18px; padding: 0; }
.hww-hits { max-height: 300px; overflow: auto; }
.hww-hits table { width: 100%; margin: 0; border-collapse: collapse; font-size: 12px;
  font-variant-numeric: tabular-nums; }
.hww-hits caption { text-align: left; font-weight: 600; padding: 2px 0; color: inherit; caption-side: top; }
.hww-hits th { text-align: left; font-weight: 600; padding: 2px 8px; position: sticky; top: 0;
  background: var(--jp-layout-color2, #eee); }
.hww-hits td { text-align: left; padding: 2px 8px; white-space: nowrap; }
.hww-hits tbody tr:nth-child(even) { background: var(--jp-layout-color1, #f7f7f7); }
.hww-panel :focus-visible { outline: 2px solid var(--jp-brand-color1, #1565c0); outline-offset: 1px; }
.jp-OutputArea-child:has(.hww-panel) + .jp-OutputArea-child:has(> .jp-RenderedHTMLCommon > .hww-static) {
  display: none; }
</style>"""

#: Hides the words that JupyterLab has for a widget whose kernel is gone, where saved tables follow.
MISSING = """<style>
.jp-OutputArea-child:not(:has(.hww-panel)):has(> :is(.jupyter-widgets, .lm-Panel)):has(+ .jp-OutputArea-child
  > .jp-RenderedHTMLCommon > .hww-static) { display: none; }
</style>"""
