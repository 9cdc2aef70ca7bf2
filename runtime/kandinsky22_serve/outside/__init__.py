"""What the server asks of others and tells them: the one place that fetches and posts.

An address comes from whoever sends a request, and may point into our own network. `addresses` reads and judges it,
`client` connects to what was judged and nothing else, `signing` signs what webhooks receive.
"""

from kandinsky22.errors import InputError


class OutsideError(InputError):
    """An address is not one that the server may use, or nothing usable came from it.

    The message is for whoever gave the address: it tells nothing of the server's network. The log has the reason.
    """
