"""Finds secrets that a job would reveal: all users of the cluster can read a job's command, variables and files.

A secret is recognised by its name (`WANDB_API_KEY`) or by its form (`s3://user:password@host`, a signed address, a
private key). No message repeats a secret.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ebmscale.errors import ConfigError

PUT_ON_NODES = (
    "put it on the nodes instead: into the environment of `ray start` (on Kubernetes by a Secret), or into a file of "
    "mode 0600 such as ~/.aws/credentials"
)

_SECRET_WORD = re.compile(
    r"(KEY|KEYS|SECRETS?|TOKENS?|PASSWORDS?|PASSWD|PASSPHRASE|CREDENTIALS?|CREDS?|SIGNATURE|COOKIE)$"
    r"|^(PASS|PWD|PAT|SAS|SIG|AUTH|BEARER|DSN)$"
)
_NAMES_A_FILE = {"FILE", "PATH", "DIR", "URI"}  # AWS_SHARED_CREDENTIALS_FILE holds an address and no secret
_HARMLESS = {"PWD", "OLDPWD", "SSH_AUTH_SOCK", "PAGER_KEY"}
_USER_IN_ADDRESS = re.compile(r"://(?:[^\s/:@]*:(?!\d{1,5}(?:/|$))[^\s@]+|(?<=p://)[^\s/@]+|(?<=ps://)[^\s/@]+)@")
_USER_ALONE = re.compile(r"(?:^|[\s=,;'\"])[^\s/:@=,;'\"]+:[^\s/@]+@[\w.-]+")
_PAIR = re.compile(r"([A-Za-z][\w.-]*)[\"']?\s*[=:]\s*[\"']?[^\s\"'=:/&]")
_IN_QUERY = re.compile(r"[?&;#]([\w.-]+)=[^&#\s]")
_KNOWN_FORM = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|\bgh[pousr]_\w{20,}|\bgithub_pat_\w{20,}|\bhf_\w{20,}"
    r"|\bsk-[\w-]{20,}|\bxox[abprs]-[\w-]{10,}|\bAIza[\w-]{30,}|\beyJ[\w-]{8,}\.eyJ[\w-]{8,}"
)
_SECRET_FILE = re.compile(
    r"(\.env|\.env\..+|\.envrc|.+\.env|.+\.(pem|key|p12|pfx|jks|keystore|kdbx|ppk|asc|gpg|tfstate)"
    r"|id_(rsa|dsa|ecdsa|ed25519)|[._]netrc|\.pgpass|\.git-credentials|\.htpasswd|\.pypirc|\.npmrc|\.s3cfg|\.boto"
    r"|\.rclone\.conf|rclone\.conf|kubeconfig|auth_token|\.?(credentials?|secrets?|passwords?)(\.\w+)?"
    r"|.*(service[-_]account|default_credentials|client_secret).*\.json)",
    re.IGNORECASE,
)
_EXAMPLE = re.compile(r".*\.(example|sample|template|dist|py|pyi|md|rst)", re.IGNORECASE)
_SECRET_FOLDERS = {".ssh", ".aws", ".gnupg", ".kube", ".docker", ".azure", "gcloud", ".ray"}
_SMALL_BYTES = 65_536  # larger JSON files are not searched for a private key


def names_secret(name: str) -> bool:
    """Whether the name of a variable or a field indicates that its value is a secret."""
    if name.upper() in _HARMLESS:
        return False
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).upper()
    words = [word for word in re.split(r"[^A-Z0-9]+", spaced) if word]
    if not words or words[-1] in _NAMES_A_FILE:
        return False
    return "CONNECTION_STRING" in spaced or any(_SECRET_WORD.search(word) for word in words)


def holds_secret(text: str) -> bool:
    """Whether a text holds an address with a password or a signature, or a key of a known form."""
    if _USER_IN_ADDRESS.search(text) or _KNOWN_FORM.search(text):
        return True
    return any(names_secret(name) for name in _IN_QUERY.findall(text))


def check_variable(name: str, value: str) -> None:
    """Refuses a variable that the job would reveal.

    Raises:
        ConfigError: its name or its value looks like a secret.
    """
    by_value = holds_secret(value) or _USER_ALONE.search(value) or any(map(names_secret, _PAIR.findall(value)))
    if names_secret(name) or by_value:
        raise ConfigError(
            f"--env {name} looks like a secret, and everybody who sees the cluster's job list or logs can read a "
            f"job's variables; {PUT_ON_NODES}."
        )


def check_configuration(tree: Mapping[str, Any], text: str, words: list[str]) -> None:
    """Refuses a configuration with secrets, since the job's command shows it.

    Args:
        tree: the configuration as nested values.
        text: of its file.
        words: of the command line.

    Raises:
        ConfigError: an address holds a secret.
    """
    for key, value in _leaves(tree):
        if holds_secret(value):
            raise ConfigError(
                f"{key} holds a password, key or signature, and everybody who sees the cluster's job list or logs "
                f"can read it there; give the address without it and {PUT_ON_NODES}."
            )
    if holds_secret(text) or any(map(holds_secret, words)):
        raise ConfigError(
            "The configuration file or an override holds a password, key or signature, and everybody who sees the "
            f"cluster's job list or logs can read it there; take it out and {PUT_ON_NODES}."
        )


def is_secret_file(path: Path) -> bool:
    """Whether a file holds secrets, by its name, the name of its folder, or a private key in it."""
    for one in {path, path.resolve()}:
        if _SECRET_FOLDERS.intersection(one.parts[-3:-1]):
            return True
        if _SECRET_FILE.fullmatch(one.name) and not _EXAMPLE.fullmatch(one.name):
            return True
    if path.suffix.lower() != ".json" or path.stat().st_size > _SMALL_BYTES:
        return False
    return b"PRIVATE KEY-----" in path.read_bytes()


def _leaves(tree: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """Yields the strings of a configuration with their keys; an address includes its secrets."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{above}{name}.")
        elif isinstance(value, str):
            yield f"{above}{name}", str(getattr(value, "real", value))
