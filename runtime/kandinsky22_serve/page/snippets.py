"""The inputs of the page as a call of the API that runs as it is shown: in Python, Node, and cURL."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

TOKEN = "KANDINSKY22_TOKEN"
"""The variable of the environment that the calls take the token from."""


@dataclass(frozen=True)
class Snippets:
    """One call in three languages."""

    python: str
    node: str
    curl: str


def snippets(inputs: Mapping[str, Any], base: str, model: str, *, has_token: bool) -> Snippets:
    """Calls that make a prediction of `inputs` at the server at `base`, wait for it, and print its pictures' URLs."""
    given = json.dumps(inputs, ensure_ascii=False, indent=2)
    return Snippets(
        _python(inputs, base, model, has_token=has_token),
        _node(given, base, model, has_token=has_token),
        _curl(given, base, model, has_token=has_token),
    )


def _python(inputs: Mapping[str, Any], base: str, model: str, *, has_token: bool) -> str:
    token = f'os.environ["{TOKEN}"]' if has_token else '"none"'
    imports = "import os\n\nimport replicate" if has_token else "import replicate"
    given = "".join(f'    "{name}": {_literal(value)},\n' for name, value in inputs.items())
    return (
        f"# pip install replicate\n{imports}\n\n"
        f"client = replicate.Client(api_token={token}, base_url={json.dumps(base)})\n"
        f"inputs = {{\n{given}}}\n"
        f"for picture in client.run({json.dumps(model)}, input=inputs, use_file_output=False):\n"
        "    print(picture)\n"
    )


def _literal(value: Any) -> str:
    """A value in Python. JSON's texts, numbers and lists are Python's, too, in the quotes that its readers use."""
    return repr(value) if value is None or isinstance(value, bool) else json.dumps(value, ensure_ascii=False)


def _node(given: str, base: str, model: str, *, has_token: bool) -> str:
    token = f"process.env.{TOKEN}" if has_token else '"none"'
    return (
        '// npm install replicate; save as call.mjs\nimport Replicate from "replicate";\n\n'
        "const replicate = new Replicate({\n"
        f"  auth: {token},\n  baseUrl: {json.dumps(base + '/v1')},\n  useFileOutput: false,\n}});\n"
        f"const input = {given};\n"
        f"for (const picture of await replicate.run({json.dumps(model)}, {{ input }})) {{\n"
        "  console.log(picture);\n}\n"
    )


def _curl(given: str, base: str, model: str, *, has_token: bool) -> str:
    token = f'  -H "Authorization: Bearer ${TOKEN}" \\\n' if has_token else ""
    # A quoted heredoc takes the JSON as it is, quotes of every kind included; no line of it is the closing word alone.
    return (
        f"curl -sS {base}/v1/models/{model}/predictions \\\n{token}"
        '  -H "Content-Type: application/json" -H "Prefer: wait" \\\n'
        "  --data-binary @- <<'JSON'\n"
        f'{{"input": {given}}}\nJSON\n'
    )
