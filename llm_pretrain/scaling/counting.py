"""What a parameter and an operation is, for laws: the same words for published runs and studies."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from llm_pretrain.config.arguments import option
from llm_pretrain.config.schema import ModelConfig
from llm_pretrain.errors import UserError
from llm_pretrain.model.flops import flops_per_token, parameter_count

Embedding = Literal["counted", "left-out"]
Attention = Literal["full", "causal"]


@dataclass(frozen=True)
class Counting:
    """How N and C are counted."""

    embedding: Embedding = "counted"
    """Whether N has the embedding's parameters; a head of its own is counted always."""
    attention: Attention = "full"
    """Whether masked scores count as operations: full, or causal, which counts half of them."""

    @classmethod
    def parse(cls, arguments: Sequence[str]) -> "tuple[list[str], Counting | None]":
        """The arguments without --embedding and --attention, and what they say; None: nothing.

        Raises UserError.
        """
        rest, embedding = option(arguments, "--embedding", "counted or left-out")
        rest, attention = option(rest, "--attention", "full or causal")
        for name, value, valid in (
            ("--embedding", embedding, get_args(Embedding)),
            ("--attention", attention, get_args(Attention)),
        ):
            if value is not None and value not in valid:
                raise UserError(f"{name}: '{value}'; valid: {', '.join(valid)}")
        if embedding is None and attention is None:
            return rest, None
        return rest, cls(embedding or "counted", attention or "full")  # type: ignore[arg-type]

    def params(self, model: ModelConfig) -> int:
        """N of a model."""
        left = model.vocab_size * model.width if self.embedding == "left-out" else 0
        return parameter_count(model) - left

    def flops(self, model: ModelConfig, sequence_length: int, tokens: float) -> float:
        """C: operations of training on so many tokens."""
        return tokens * flops_per_token(model, sequence_length, self.attention == "causal")

    def __str__(self) -> str:
        embedding = "with" if self.embedding == "counted" else "without"
        scores = "all scores" if self.attention == "full" else "unmasked scores only"
        return (
            f"N: all trained parameters {embedding} the embedding. C: counted product by product, "
            f"attention with {scores}."
        )
