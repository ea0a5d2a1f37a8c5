"""What a job must not make known: told by its name and by its form, and nothing else is refused."""

import re
from pathlib import Path

import pytest

from ebmscale.config import RunConfig, known_keys, parse_config
from ebmscale.errors import ConfigError
from ebmscale.runtime.exposure import check_configuration, check_variable, holds_secret, is_secret_file, names_secret

SIGNED = "https://host/set?X-Amz-Algorithm=AWS4&X-Amz-Signature=0123abcd"
CONFIG = "run: {name: a}\ndata: {url: URL}\ntrain: {max_samples: 1}\n"


@pytest.mark.parametrize(
    "name",
    ["AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "AWS_SESSION_TOKEN", "WANDB_API_KEY", "wandb_api_key", "apiKey",
     "APIKEY", "HF_TOKEN", "GITHUBTOKEN", "DB_PASSWORD", "PGPASSWORD", "REDIS_PASS", "MY_CREDENTIAL", "SECRETS",
     "GOOGLE_APPLICATION_CREDENTIALS", "AZURE_STORAGE_CONNECTION_STRING", "AZURE_STORAGE_SAS", "GITHUB_PAT",
     "MLFLOW_TRACKING_PASSWORD", "SSH_KEY_PASSPHRASE"],
)  # fmt: skip
def test_names_of_secrets(name: str) -> None:
    assert names_secret(name)
    with pytest.raises(ConfigError, match=rf"--env {name} looks like a secret.*0600"):
        check_variable(name, "value-that-nobody-sees")


@pytest.mark.parametrize(
    ("name", "value"),
    [("TOKENIZERS_PARALLELISM", "false"), ("AWS_DEFAULT_REGION", "us-west-2"), ("OMP_NUM_THREADS", "2"), ("PWD", "/x"),
     ("AWS_ENDPOINT_URL", "http://10.0.0.1:9000/path@2x"), ("AWS_SHARED_CREDENTIALS_FILE", "/etc/credentials"),
     ("HF_HOME", "/data/hf"), ("MINE", "a=b"), ("EMPTY", ""), ("HTTP_PROXY", "http://proxy:3128"), ("KEYBOARD", "us"),
     ("NCCL_SOCKET_IFNAME", "eth0"), ("TOKENIZER", "bpe"), ("MAIL", "me@example.org"), ("URL", "s3://bucket/a:b@c")],
)  # fmt: skip
def test_what_is_no_secret(name: str, value: str) -> None:
    check_variable(name, value)


@pytest.mark.parametrize(
    "value",
    ["s3://user:pw@bucket/x", "https://user:p/w+x@host/", "postgres://:pw@host/db", "https://token1234@github.com/x",
     "user:pw@host", "a b;user:pw@host", SIGNED, "https://host/x?sig=abc", "https://host/x?access_token=abc",
     '{"password": "abc"}', "host=db password=abc", "AccountName=x;AccountKey=abc", "AKIAIOSFODNN7EXAMPLE",
     "-----BEGIN RSA PRIVATE KEY-----", "ghp_0123456789abcdefghijKLMN", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.x"],
)  # fmt: skip
def test_values_that_are_secrets_whatever_their_name(value: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_variable("HARMLESS", value)
    assert value not in str(caught.value)


@pytest.mark.parametrize("url", ["s3://user:hunter2@bucket/x", SIGNED, "s3://AKIAIOSFODNN7EXAMPLE:hunter2@bucket"])
@pytest.mark.parametrize("key", ["data.url", "storage.url", "data.endpoint_url", "storage.endpoint_url"])
def test_secrets_in_addresses_of_a_configuration(key: str, url: str) -> None:
    config, override = parse_config(CONFIG, [f"{key}={url}"]), f"{key}={url}"
    with pytest.raises(ConfigError, match=re.escape(key)) as caught:
        check_configuration(config.model_dump(), CONFIG, [override])
    assert "hunter2" not in str(caught.value)
    assert "0123abcd" not in str(caught.value)


def test_secrets_anywhere_in_the_file_that_is_sent() -> None:
    tree = parse_config(CONFIG).model_dump()
    check_configuration(tree, CONFIG, ["run.name=b"])
    with pytest.raises(ConfigError, match="configuration file or an override"):
        check_configuration(tree, f"# once: s3://user:pw@bucket\n{CONFIG}", [])
    with pytest.raises(ConfigError, match="configuration file or an override"):
        check_configuration(tree, CONFIG, ["data.source=s3://user:pw@bucket"])


def test_no_key_of_the_configuration_is_taken_for_a_secret() -> None:
    presets = Path(__file__).parents[2] / "configs"
    for path in presets.rglob("*.yaml"):
        assert not holds_secret(path.read_text()), path
    assert [key for key in known_keys(RunConfig) if names_secret(key)] == []


@pytest.mark.parametrize(
    "name",
    [".env", ".env.local", "prod.env", "sub/.env", "id_rsa", "deploy.pem", "tls.key", ".netrc", ".aws/credentials",
     ".aws/config", ".ssh/config", "credentials.json", "secrets.yaml", "my-service-account.json", ".git-credentials",
     ".docker/config.json", ".kube/config", "key.p12", "auth_token", "kubeconfig"],
)  # fmt: skip
def test_files_of_secrets(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("x")
    assert is_secret_file(path)
    link = tmp_path / "harmless.txt"
    link.symlink_to(path)
    assert is_secret_file(link)


@pytest.mark.parametrize(
    "name", ["train.py", "secrets.py", ".env.example", "config.yaml", "keys.txt", "token.py", "environment.yml",
             "a.json", "credentials.md", "aws/config", "tokenizer.json", ".gitignore", "key_frames.npz"],
)  # fmt: skip
def test_files_that_are_no_secrets(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("{}")
    assert not is_secret_file(path)


def test_a_key_in_a_json_file_of_any_name(tmp_path: Path) -> None:
    path = tmp_path / "project-123.json"
    path.write_text('{"type": "service_account", "private_key": "-----BEGIN PRIVATE KEY-----\\n..."}')
    assert is_secret_file(path)
