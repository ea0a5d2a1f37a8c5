from pathlib import Path

import pytest

from ebmscale.config import CIRCUMSTANCES, RESUMABLE, Block, RunConfig, changed_keys, load_config, parse_config
from ebmscale.config.fields import block_of
from ebmscale.errors import ConfigError

MINIMAL = "run: {name: a}\ndata: {url: d}\ntrain: {max_samples: 1000}\n"
CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_configuration_is_valid(path: Path) -> None:
    config = load_config(path)
    assert config.run.name == path.stem


def test_overrides_are_dotted_and_typed() -> None:
    config = parse_config(MINIMAL, ["train.batch_size=64", "train.generator.rate=1e-4", "model.ratio.hidden=[8,8]"])
    assert config.train.batch_size == 64
    assert config.train.generator.rate == 1e-4
    assert config.model.ratio.hidden == (8, 8)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.batchsize=3", "did you mean train.batch_size"),
        ("batch_size=3", "did you mean train.batch_size"),
        ("posterior.step=1", "did you mean posterior.step_size"),
        ("train.batch_size=many", "train.batch_size: input should be a valid integer"),
        ("train.max_samples=-1", "greater than 0"),
        ("model.sigma=automatic", "model.sigma: input should be a valid number or 'auto', but it is 'automatic'."),
        (
            "stages.updates_per_batch=0",
            "stages.updates_per_batch: input should be greater than 0 or 'auto', but it is 0.",
        ),
        ("prior.base_components=[3,many]", "prior.base_components: input should be a valid integer or 'auto', but"),
        ("model.latent_shape=flat", "model.latent_shape: input should be a list, but it is 'flat'"),
        ("precision=fp16", "use bf16 or fp32"),
        ("train.batch_size=2", "data.num_streams"),
        ("prior.num_chains=100", "must be a multiple of data.num_streams"),
        ("stages.settle_samples=50000", "below max_samples"),
        ("prior={equilibrate: tilt, equilibrate_steps: 0}", "tilt needs equilibrate_steps above 0"),
        ("prior.base=moments", "stages.start_samples must be at least stages.buffer_samples (3200)"),
        ("posterior.num_steps=0", "unless the chain starts at an encoder"),
        ("train.max_samples=.nan", "train.max_samples"),
        ("run.name=../escape", "run.name"),
        ("no-equals-sign", "key=value"),
        ("run.name.deeper=1", "holds a value"),
        ("data.held_out.lable=1", "did you mean data.held_out.label"),
        ("data.held_out.protocol=pool", "'official' or 'pooled'"),
    ],
)
def test_a_bad_override_gets_one_sentence(override: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(MINIMAL, [override])
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_mixture_has_no_more_components_than_posteriors_can_fit() -> None:
    keys = ["prior={base: moments, base_components: 100}", "stages={buffer_samples: 640, start_samples: 640}"]
    with pytest.raises(ConfigError, match=r"prior\.base_components must be at most 40"):
        parse_config(MINIMAL, keys)


def test_one_gaussian_is_not_fitted_several_times() -> None:
    with pytest.raises(ConfigError, match=r"base_fits above 1 needs base_components above 1"):
        parse_config(MINIMAL, ["prior={base: moments, base_fits: 2}"])


def test_the_checkpoints_that_are_kept_are_counted() -> None:
    assert load_config("preset:mnist_joint", []).most_checkpoints == 2
    rules = ["checkpoint={keep_last: 3, keep_best: 2, keep_every: 20000, every_samples: 10000}"]
    two_stages = load_config("preset:mnist", rules)
    assert two_stages.has_two_stages
    assert two_stages.most_checkpoints == 3 + 2 + two_stages.train.max_samples // 20_000 + 1


def test_the_number_of_components_may_be_left_to_held_out_posteriors() -> None:
    room = "stages={buffer_samples: 640, start_samples: 640}"
    for given, sizes in (("auto", (1, 2, 4, 10, 30, 60)), ("[2, 5]", (2, 5)), ("7", (7,))):
        prior = parse_config(MINIMAL, [room, f"prior={{base: moments, base_components: {given}}}"]).prior
        assert (prior.base_sizes, prior.chooses_base) == (sizes, given != "7")
    with pytest.raises(ConfigError, match="a list of rising numbers"):
        parse_config(MINIMAL, [room, "prior={base: moments, base_components: [5, 2]}"])
    with pytest.raises(ConfigError, match="base_components"):
        parse_config(MINIMAL, [room, "prior={base: moments, base_components: many}"])


REMOVED = [
    ("posterior={start: memory, first_steps: 5}", r"posterior\.start: memory was removed"),
    ("posterior.plateau=0.05", r"posterior\.plateau was removed"),
    ("model.ratio_components=4", r"model\.ratio_components was removed"),
    ("stages.penalty=0.1", r"stages\.penalty was removed"),
]


@pytest.mark.parametrize(("override", "sentence"), REMOVED)
def test_a_removed_key_that_asked_for_something_is_refused(override: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        parse_config(MINIMAL, [override])


def test_a_removed_key_that_asked_for_nothing_is_dropped() -> None:
    defaults = ["stages.loss=nce", "stages.penalty=0.0", "model.ratio_components=0", "model.ratio_rank=8"]
    defaults += ["posterior.first_steps=null", "posterior.memory_bytes=268435456", "posterior.plateau=0.0"]
    assert parse_config(MINIMAL, defaults) == parse_config(MINIMAL)


def test_every_key_says_what_it_means() -> None:
    def check(block: type[Block], prefix: str) -> None:
        for name, field in block.model_fields.items():
            assert field.description, f"{prefix}{name}"
            if (inner := block_of(field)) is not None:
                check(inner, f"{prefix}{name}.")

    check(RunConfig, "")


def test_keys_that_may_change_are_those_that_say_so() -> None:
    assert {"train.max_samples", "train.generator.rate", "train.ratio.rate", "guard", "storage", "ray"} <= set(
        RESUMABLE
    )
    assert not {"train.batch_size", "model", "model.latent_dim", "data.num_streams", "precision"} & set(RESUMABLE)
    assert set(CIRCUMSTANCES) < set(RESUMABLE)
    assert "train.max_samples" not in CIRCUMSTANCES


def test_a_missing_key_is_named() -> None:
    with pytest.raises(ConfigError, match=r"train\.max_samples is missing"):
        parse_config("run: {name: a}\ndata: {url: d}\ntrain: {}\n")


@pytest.mark.parametrize("text", ["a: [1", "- 1\n- 2\n", "just text"])
def test_what_is_no_mapping_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_config(text)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: No such file"):
        load_config(tmp_path / "none.yaml")


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes(b"run: \xff\xfe")
    with pytest.raises(ConfigError, match="not a text file"):
        load_config(tmp_path / "x.yaml")


def test_a_dump_reads_back_as_the_same_configuration() -> None:
    config = parse_config(MINIMAL, ["stages.magnification=30"])
    assert parse_config(config.dump()) == config


def test_only_what_the_run_computes_forbids_a_resume() -> None:
    config = parse_config(MINIMAL)
    harmless = ["train.max_samples=9", "checkpoint.every_samples=5", "engine=plain", "storage.url=elsewhere"]
    assert changed_keys(config, parse_config(MINIMAL, harmless)) == []
    assert changed_keys(config, parse_config(MINIMAL, ["model.sigma=1"])) == ["model.sigma"]


def test_the_class_that_is_held_out_forbids_a_resume() -> None:
    config = parse_config(MINIMAL, ["data.held_out.label=1"])
    assert config.data.held_out.label == "1"
    assert changed_keys(parse_config(MINIMAL), config) == ["data.held_out.label"]
    pooled = parse_config(MINIMAL, ["data.held_out.label=1", "data.held_out.protocol=pooled"])
    assert changed_keys(config, pooled) == ["data.held_out.protocol"]


def test_keys_of_earlier_versions_mean_the_present_ones() -> None:
    old = (
        MINIMAL + "model: {form: svhn, generator_width: 5, encoder_width: 6, ratio_hidden: [7], ratio_squares: true}\n"
    )
    model = parse_config(old, ["model.ratio_activation=gelu"]).model
    assert (model.generator.form, model.generator.width, model.encoder.width) == ("svhn", 5, 6)
    assert (model.ratio.hidden, model.ratio.squares, model.ratio.activation) == ((7,), True, "gelu")
    assert parse_config(old, ["model.generator_width=9"]).model.generator.width == 9
    with pytest.raises(ConfigError, match=r"model\.ratio_hidden is called model\.ratio\.hidden now, and both"):
        parse_config(MINIMAL + "model: {ratio_hidden: [7], ratio: {hidden: [8]}}\n")


def test_the_shape_of_maps_gives_the_latent_size() -> None:
    config = parse_config(MINIMAL, ["model.latent_shape=[4,2,3]"])
    assert (config.model.latent_dim, config.model.shape) == (24, (4, 2, 3))
    assert parse_config(config.dump()) == config
    with pytest.raises(ConfigError, match="must be the product of latent_shape"):
        parse_config(MINIMAL, ["model.latent_shape=[4,2,3]", "model.latent_dim=25"])


def test_arguments_of_an_own_network_are_free_and_a_change_of_them_is_seen() -> None:
    old = parse_config(MINIMAL, ["model.generator.class=a.b:C", "model.generator.args.width=4"])
    new = parse_config(MINIMAL, ["model.generator.class=a.b:C", "model.generator.args={width: 5}"])
    assert old.model.generator.args == {"width": 4}
    assert parse_config(old.dump()) == old
    assert changed_keys(old, new) == ["model.generator.args"]
