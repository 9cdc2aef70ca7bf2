"""One folder: the SQLite file, the pictures, and the lock that makes it one server's."""

from __future__ import annotations

import contextlib
from pathlib import Path

from kandinsky22 import files as disk
from kandinsky22.errors import InputError
from kandinsky22_serve.store.database import Database
from kandinsky22_serve.store.deliveries import Deliveries
from kandinsky22_serve.store.files import Files
from kandinsky22_serve.store.jobs import Jobs


class Store:
    """Jobs, files and deliveries of one server."""

    def __init__(self, folder: Path) -> None:
        """Open the store in a folder, made where it is missing. Raises InputError where another server has it."""
        self.folder = folder
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{folder} cannot hold the queue ({error.strerror}); name another with --data.") from error
        self._held = contextlib.ExitStack()
        if not self._held.enter_context(disk.locked(folder / ".lock")):
            self._held.close()
            raise InputError(f"{folder} is another running server's; name another folder with --data.")
        try:
            self.database = Database(folder / "queue.sqlite3")
            (folder / "queue.sqlite3").chmod(0o600)
            self.jobs = Jobs(self.database)
            self.files = Files(self.database, folder / "files")
            self.deliveries = Deliveries(self.database)
        except BaseException:
            self._held.close()
            raise

    def fact(self, name: str, make: str = "") -> str:
        """A text that is kept under a name; `make` where there is none yet."""
        with self.database.write() as connection:
            connection.execute("INSERT OR IGNORE INTO facts (name, value) VALUES (?, ?)", (name, make))
            (value,) = connection.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return str(value)

    def close(self) -> None:
        """Close the file and give the folder free."""
        self.database.close()
        self._held.close()
