"""What must not travel with a job: its command, variables and files lie open in the cluster's job list, logs and nodes.

Secrets are told by their names (`WANDB_API_KEY`) and by their form (`s3://user:password@host`, a signed address, a
private key). Nothing here repeats a secret in a message.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ebmscale.errors import ConfigError

WAY_ROUND = (
    "put it on the nodes instead: into the environment of `ray start` (on Kubernetes by a Secret), or into a file of "
    "mode 0600 such as ~/.aws/credentials"
)

_SECRET_WORD = re.compile(
    r"(KEY|KEYS|SECRETS?|TOKENS?|PASSWORDS?|PASSWD|PASSPHRASE|CREDENTIALS?|CREDS?|SIGNATURE|COOKIE)$"
    r"|^(PASS|PWD|PAT|SAS|SIG|AUTH|BEARER|DSN)$"
)
_NAMES_A_FILE = {"FILE", "PATH", "DIR", "URI"}  # AWS_SHARED_CREDENTIALS_FILE says where, not what
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
_SMALL_BYTES = 65_536  # of a file that may hold a key


def names_secret(name: str) -> bool:
    """Whether a variable's or a field's name says that its value is a secret."""
    if name.upper() in _HARMLESS:
        return False
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).upper()
    words = [word for word in re.split(r"[^A-Z0-9]+", spaced) if word]
    if not words or words[-1] in _NAMES_A_FILE:
        return False
    return "CONNECTION_STRING" in spaced or any(_SECRET_WORD.search(word) for word in words)


def holds_secret(text: str) -> bool:
    """Whether addresses in a text hold a user's password or a signature, or it holds a key of a known form."""
    if _USER_IN_ADDRESS.search(text) or _KNOWN_FORM.search(text):
        return True
    return any(names_secret(name) for name in _IN_QUERY.findall(text))


def check_variable(name: str, value: str) -> None:
    """Refuses a variable that the job would make known.

    Raises:
        ConfigError: its name or its value looks like a secret.
    """
    by_value = holds_secret(value) or _USER_ALONE.search(value) or any(map(names_secret, _PAIR.findall(value)))
    if names_secret(name) or by_value:
        raise ConfigError(
            f"--env {name} looks like a secret, and everybody who sees the cluster's job list or logs could read a "
            f"job's variables; {WAY_ROUND}."
        )


def check_configuration(tree: Mapping[str, Any], text: str, words: list[str]) -> None:
    """Refuses a configuration that the job's command would make known.

    Args:
        tree: the configuration as nested values.
        text: of its file.
        words: of the command line.

    Raises:
        ConfigError: there is a secret in an address.
    """
    for key, value in _leaves(tree):
        if holds_secret(value):
            raise ConfigError(
                f"{key} holds a password, key or signature, and everybody who sees the cluster's job list or logs "
                f"could read it there; give the address without it and {WAY_ROUND}."
            )
    if holds_secret(text) or any(map(holds_secret, words)):
        raise ConfigError(
            "The configuration file or an override holds a password, key or signature, and everybody who sees the "
            f"cluster's job list or logs could read it there; take it out and {WAY_ROUND}."
        )


def is_secret_file(path: Path) -> bool:
    """Whether a file is one that keeps secrets, by its name, its folder's, or a private key in it."""
    for one in {path, path.resolve()}:
        if _SECRET_FOLDERS.intersection(one.parts[-3:-1]):
            return True
        if _SECRET_FILE.fullmatch(one.name) and not _EXAMPLE.fullmatch(one.name):
            return True
    if path.suffix.lower() != ".json" or path.stat().st_size > _SMALL_BYTES:
        return False
    return b"PRIVATE KEY-----" in path.read_bytes()


def _leaves(tree: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """The texts of a configuration with their keys; of an address that hides its secrets, what it really is."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{above}{name}.")
        elif isinstance(value, str):
            yield f"{above}{name}", str(getattr(value, "real", value))
