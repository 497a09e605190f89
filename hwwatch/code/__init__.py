"""What code did it: memory maps, native symbols, machine instructions, Python source lines.

Nothing is imported here: the modules below pull in iced-x86 and pyelftools, which
``import hwwatch`` must not load.
"""
