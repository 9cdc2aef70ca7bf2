"""The commands and programs of docs/server.md run as they stand there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.serve.conftest import TOKEN

DOCS = Path(__file__).parents[2] / "docs" / "server.md"
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", DOCS.read_text(), re.DOTALL)


def blocks(language, word):
    return [text for name, text in BLOCKS if name == language and word in text]


@pytest.fixture(scope="module")
def environment(server):
    quick = {"KANDINSKY22_URL": server.base, "KANDINSKY22_TOKEN": TOKEN}
    return {**{name: value for name, value in os.environ.items() if "PROXY" not in name.upper()}, **quick}


def told(command, environment, folder=None):
    found = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=300)
    assert found.returncode == 0, found.stderr
    return found.stdout


def test_the_python_program_prints_addresses_of_pictures(environment, server):
    (text,) = blocks("python", "replicate.client")
    assert re.search(rf"{server.base}/files/\w{{26}}\.webp", told([sys.executable, "-c", text], environment))


def test_the_program_of_openais_client_gets_a_picture(environment):
    (text,) = blocks("python", "OpenAI")
    assert told([sys.executable, "-c", text], environment) == "1 picture\n"


def test_the_node_program_prints_addresses_of_pictures(environment, server, node_clients):
    (text,) = blocks("javascript", "Replicate")
    command = ["node", "--input-type=module", "--eval", text]
    assert re.search(rf"{server.base}/files/\w{{26}}\.webp", told(command, environment, node_clients))


def test_the_curl_command_prints_addresses_of_pictures(environment, server):
    (text,) = blocks("sh", "curl")
    assert re.search(rf"{server.base}/files/\w{{26}}\.webp", told(["bash", "-c", text], environment))
