"""The commands of `kandinsky22`, one a module: `SUMMARY`, `add_arguments(parser)` and `run(options)`.

None imports NumPy, Pillow or a backend before it runs, so that `--help` comes at once.
"""
