# Sourced by what needs a fresh Debian: makes the root folder $root, which goes when the script ends.
# Needs root and debootstrap.

# fresh_root NAME SUITE PACKAGE,…  – NAME is the make target, for messages.
fresh_root() {
  [ "$(id -u)" = 0 ] || { echo "make $1 needs root, for a root folder of its own: sudo make $1"; exit 1; }
  command -v debootstrap >/dev/null || { echo "No debootstrap: sudo apt install debootstrap"; exit 1; }
  root=$(mktemp --directory --tmpdir=/var/tmp "hwwatch-$1.XXXXXX")
  trap 'rm -rf --one-file-system "$root"' EXIT
  chmod 755 "$root"
  echo "--- a fresh Debian root ($2)"
  debootstrap --variant=minbase --include="$3" "$2" "$root" >"$root.log" 2>&1 || { tail -5 "$root.log"; exit 1; }
  rm -f "$root.log"
  cp /etc/resolv.conf /etc/hosts "$root/etc/"
  cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
}

# put_project FOLDER – the files that git knows, as they are, into a folder of the root.
put_project() {
  mkdir -p "$root/$1"
  git ls-files -z | tar --create --null --files-from=- | tar --extract --directory="$root/$1" --no-same-owner
}
