"""The HTTP server of kandinsky22: a queue that loses nothing, behind the contracts that existing clients speak.

Everything here stands on `kandinsky22`, which knows nothing of it. `kandinsky22 serve BUNDLE` starts it.
"""
