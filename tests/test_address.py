import pickle

import pytest

from ebmscale.address import Address, clean
from ebmscale.config import changed_keys, parse_config, with_values
from ebmscale.errors import ConfigError, EbmscaleError
from ebmscale.search.space import parse_space
from ebmscale.storage import Storage

SECRETS = [
    "http://user:PASSW0RD@host/d",
    "https://PASSW0RD@host/d",
    "ftp://user:PASSW0RD@127.0.0.1:1/runs",
    "sftp://user:p@PASSW0RD@host/runs",
    "http://user:pass/PASSW0RD@host/d",
    "memory://user:PASSW0RD@x/runs",
    "https://account.blob/c?sv=2024&sig=PASSW0RD%2F",
    "s3://bucket/x?X-Amz-Signature=PASSW0RD&X-Amz-Date=1",
    "gs://bucket/x?a=1&access_token=PASSW0RD",
    "https://host/d?PASSW0RD",
    "https://host/d#token=PASSW0RD",
]
CONFIG = "run: {name: t}\ndata: {url: 'http://user:PASSW0RD@h/d'}\ntrain: {max_samples: 1000}\n"


@pytest.mark.parametrize("url", SECRETS)
def test_no_text_of_an_address_holds_its_secret(url):
    address = Address(url)
    for shown in (str(address), f"{address}", f"{address!r}", "%s" % address, f"{address.below('a/b')}"):  # noqa: UP031
        assert "PASSW0RD" not in shown
    assert address.real == url
    assert address.has_secrets
    assert pickle.loads(pickle.dumps(address)).real == url
    assert clean(str(address)) == address


@pytest.mark.parametrize("url", SECRETS)
def test_no_error_holds_a_secret(url):
    error = EbmscaleError(f"Cannot read '{url}' (from {url}); check it.")
    for one in (error, pickle.loads(pickle.dumps(error))):
        assert "PASSW0RD" not in str(one)
        assert str(one).endswith("; check it.")


@pytest.mark.parametrize(
    "url", ["/data/a?token=1&b", "runs", "s3://bucket/what?.txt", "abfs://container@account/x", "http://[::1]:80/x@y"]
)
def test_what_is_no_secret_is_shown(url):
    assert Address(url) == url
    assert not Address(url).has_secrets


def test_a_configuration_keeps_secrets_in_memory_alone():
    config = parse_config(CONFIG)
    copied = pickle.loads(pickle.dumps(with_values(config, {"train.batch_size": 64}, "test")))
    assert copied.data.url.real == "http://user:PASSW0RD@h/d"
    assert "PASSW0RD" not in f"{config!r} {config.dump()} {config.model_dump_json()}"
    assert changed_keys(parse_config(config.dump()), config, allowed=()) == []


def test_an_address_that_lost_its_secret_is_refused_with_what_to_do():
    saved = parse_config(parse_config(CONFIG).dump())
    with pytest.raises(ConfigError, match=r"has lost its user, password or token.* give the whole address again"):
        Storage.at(saved.data.url)


def test_the_overrides_of_a_space_are_saved_without_secrets():
    space = parse_space(
        {
            "num_trials": 1,
            "objectives": [{"metric": "held_out_mse", "direction": "min"}],
            "overrides": {"data.url": "http://user:PASSW0RD@h/d"},
            "space": {"model.sigma": {"choice": [0.1, 0.2]}},
        }
    )
    assert space.overrides["data.url"] == "http://user:PASSW0RD@h/d"
    assert "PASSW0RD" not in str(space.dump())


@pytest.mark.parametrize(
    "text",
    [
        "data.url http://user:PASSW0RD@h/d",
        "train.batch_size=[http://user:PASSW0RD@h/d",
        "data.urll=http://user:PASSW0RD@h/d",
    ],
)
def test_a_wrong_override_shows_no_secret(text):
    with pytest.raises(ConfigError) as error:
        parse_config(CONFIG, [text])
    assert "PASSW0RD" not in str(error.value)


def test_a_path_is_what_it_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Address.parse("a::b").real == f"{tmp_path}/a::b"
    assert Address.parse("file:/x/y").real == Address.parse("file:///x/y").real == "/x/y"
    assert Address.parse("file://localhost/x/y").real == "/x/y"
    assert Address.parse("./s3:/x").real == f"{tmp_path}/s3:/x"
    assert Address.parse("C:/x").real == f"{tmp_path}/C:/x"
    assert Address.parse("S3://bucket/x/").real == "s3://bucket/x"
    assert Address.parse("http://h/a b%20c%?x=1").real == "http://h/a%20b%20c%25?x=1"


@pytest.mark.parametrize(
    "text", ["", "s3:/bucket/x", "s3:bucket", "http:/h/x", "memory:/x", "s3:///x", "s3://", "a\0b"]
)
def test_what_is_nearly_an_address_is_refused(text):
    with pytest.raises(ConfigError):
        Storage.at(text)
    with pytest.raises(ConfigError, match=r"storage\.url"):
        parse_config(CONFIG, [f"storage.url={text!r}"] if "\0" not in text else ['storage.url="a\\0b"'])


@pytest.mark.parametrize(
    "url", ["http://h:99999/x", "http://[::1/x", "https://h:port/x", "http://u:PASSW0RD@h:0/x", "http://?x=1"]
)
def test_a_web_address_without_a_server_is_not_taken_for_an_empty_place(url):
    with pytest.raises(ConfigError, match="no server") as caught:
        Storage.at(url)
    assert "PASSW0RD" not in str(caught.value)


@pytest.mark.parametrize("given", [None, 3, b"runs", ["runs"]])
def test_what_a_program_gives_for_an_address_is_text_or_a_path(tmp_path, given):
    with pytest.raises(ConfigError, match="is not an address; give text or a path"):
        Storage.at(given)
    assert Storage.at(tmp_path).url == Storage.at(str(tmp_path)).url


def test_a_chain_of_filesystems_is_refused():
    with pytest.raises(ConfigError, match="is a chain of addresses"):
        Storage.at("simplecache::s3://bucket/x")


@pytest.mark.parametrize(
    ("url", "folder", "name"),
    [
        ("/x.npy", "/", "x.npy"),
        ("/a/x", "/a", "x"),
        ("memory://x.npy", "memory://", "x.npy"),
        ("memory://a/x", "memory://a", "x"),
        ("s3://bucket/x.npz", "s3://bucket", "x.npz"),
        ("http://h/a%23b.npz?sig=1", "http://h?sig=1", "a#b.npz"),
        ("http://h/d/x", "http://h/d", "x"),
    ],
)
def test_a_file_and_its_folder(url, folder, name):
    storage, file = Storage.of_file(url)
    assert (storage.url.real, file) == (folder, name)
    assert storage.url_of(file).real == url


@pytest.mark.parametrize("url", ["/", "s3://bucket", "http://host/"])
def test_what_names_no_file_is_refused(url):
    with pytest.raises(ConfigError, match="names no file"):
        Storage.of_file(url)


def test_a_clients_words_about_an_address_show_no_password():
    address = Address("s3://AKIA:SECRET@bucket/x")
    assert address.hidden_in('Invalid bucket name "AKIA:SECRET@bucket"') == 'Invalid bucket name "***@bucket"'
    assert Address("s3://bucket/x").hidden_in("a@b") == "a@b"
