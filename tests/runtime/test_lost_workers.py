from ebmscale.runtime.lost_workers import REPEATS, WorkerLoss, reason_to_stop

KEYS = tuple(f"train-{i:05d}" for i in range(10))


def crash(position: int, start: int = 960, exact: bool = True, **other) -> WorkerLoss:
    return WorkerLoss("rank 1 died", start, position, exact, keys=KEYS, **other)


def test_bad_luck_is_put_up_with():
    losses = [crash(1600), crash(1200), crash(1920, start=1500), crash(1600, start=1500)]
    assert reason_to_stop(losses, max_failures=5) is None


def test_the_same_batch_again_and_again_ends_the_run_with_its_keys():
    losses = [crash(1600, exact=False), *[crash(1600)] * (REPEATS - 1)]
    assert reason_to_stop(losses, max_failures=100) is None
    sentence = reason_to_stop([*losses, crash(1600)], max_failures=100)
    assert sentence is not None
    assert "after 1,600 samples" in sentence
    assert "train-00000" in sentence
    assert "and 2 more" in sentence


def test_machines_and_guesses_say_nothing_about_samples():
    assert reason_to_stop([crash(1600, of_node=True)] * REPEATS, max_failures=100) is None
    assert reason_to_stop([crash(1600, exact=False)] * REPEATS, max_failures=100) is None
    assert reason_to_stop([crash(1600), crash(1600), crash(1632)], max_failures=100) is None


def test_losses_without_a_checkpoint_between_use_up_the_budget():
    losses = [crash(1600 + i, exact=False) for i in range(4)]
    assert reason_to_stop(losses[:3], max_failures=3) is None
    sentence = reason_to_stop(losses, max_failures=3)
    assert sentence is not None
    assert "4 times without a checkpoint between" in sentence
    assert "960 samples" in sentence


def test_a_checkpoint_between_gives_a_new_budget():
    losses = [crash(1600 + i, exact=False) for i in range(3)] + [crash(2000, start=1920, exact=False)]
    assert reason_to_stop(losses, max_failures=3) is None


def test_losses_before_anything_was_trained_count_too():
    assert reason_to_stop([WorkerLoss("rank 0 died")] * 2, max_failures=2) is None
    assert "its start" in str(reason_to_stop([WorkerLoss("rank 0 died")] * 3, max_failures=2))
