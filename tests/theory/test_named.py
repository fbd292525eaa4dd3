"""The short notation of schedules, and what they make of a length."""

import numpy as np
import pytest

from llm_pretrain.errors import UserError
from llm_pretrain.theory.named import PRESETS, Named, parse


@pytest.mark.parametrize(
    "text,phases",
    [
        ("constant", "constant 0-1000 at 1"),
        ("wsd", "constant 0-800 at 1, cooldown 800-1000 linear to 0"),
        ("wsd-5%", "constant 0-950 at 1, cooldown 950-1000 linear to 0"),
        ("wsd-1-sqrt", "constant 0-800 at 1, cooldown 800-1000 1-sqrt to 0"),
        ("wsd-12.5%-mirror-cosine", "constant 0-875 at 1, cooldown 875-1000 mirror-cosine to 0"),
        ("cosine", "cooldown 0-1000 cosine to 0"),
        ("cosine-10%", "cooldown 0-1000 cosine to 0.1"),
        ("linear", "cooldown 0-1000 linear to 0"),
        ("linear-5%", "cooldown 0-1000 linear to 0.05"),
        ("inverse-sqrt-20%-1-sqrt", "curve 0-800 inverse-sqrt at 1, cooldown 800-1000 1-sqrt to 0"),
        (
            "two-stage-10%",
            "constant 0-400 at 1, constant 400-900 at 0.5, cooldown 900-1000 linear to 0",
        ),
    ],
)
def test_notation(text: str, phases: str) -> None:
    named = parse(text)
    assert named.schedule(1000).describe() == phases
    assert parse(named.label) == named


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("total", [3, 7, 1000])
def test_every_schedule_of_every_length(name: str, total: int) -> None:
    multipliers = parse(name).multipliers(total)
    assert multipliers.shape == (total,)
    assert multipliers[0] == 1
    assert np.all((multipliers > 0) & (np.diff(multipliers, append=0) <= 0))


def test_two_stages() -> None:
    multipliers = parse("two-stage").multipliers(1000)
    expected = [*[1.0] * 400, *[0.5] * 400, *(0.5 * (1 - k / 200) for k in range(200))]
    assert multipliers.tolist() == pytest.approx(expected)
    other = Named.of("two-stage", {}, parse("wsd").drop, 0.1).multipliers(10)
    assert other.tolist() == pytest.approx([1, 1, 1, 1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.05])


def test_fields_of_a_run() -> None:
    multipliers = parse("wsd", {"warmup": "10%", "warmup_from": 0.5}).multipliers(100)
    assert multipliers[:11].tolist() == pytest.approx([0.5 + 0.05 * u for u in range(11)])
    assert multipliers[11:80].tolist() == [1.0] * 69


@pytest.mark.parametrize(
    "text,words",
    [
        ("csine", ["'csine'", "did you mean 'cosine'?"]),
        ("wsd-20", ["'20'", "write 20%"]),
        ("wsd-20%-liner", ["'liner'", "did you mean 'linear'?"]),
        ("wsd-120%", ["120%", "0% to 100%"]),
        ("wsd-x%", ["x%"]),
        ("constant-20%", ["constant", "use wsd"]),
        ("cosine-linear", ["'linear'", "cosine"]),
    ],
)
def test_bad_notation(text: str, words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        parse(text)
    for word in words:
        assert word in str(error.value)
