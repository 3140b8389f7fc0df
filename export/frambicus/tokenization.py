"""The tokenizer: the speech model's, with names for five of its reserved tokens.

    <s> what color is the cat <<ST_1>> red </s>       a question, the token that asks for an answer, the answer
    <s> <<ST_0>> a red cat and two dogs </s>          a caption
    <s> a red cat <<ST_3>>                            a text whose last state is its embedding

A prompt ends with its task's token, so that one token both separates and says what comes.
"""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerFast

from edgemm.errors import InputError
from edgemm.export.frambicus.configuration import TASKS
from edgemm.export.frambicus.locate import located

TASK_TOKENS = {task: f"<<ST_{i}>>" for i, task in enumerate(TASKS)}
"""caption `<<ST_0>>`, answer `<<ST_1>>`, describe `<<ST_2>>`, recommend `<<ST_3>>`, mask `<<ST_4>>`."""


class FrambicusTokenizer(PreTrainedTokenizerFast):
    """Text ↔ ids, and the prompts of the tasks."""

    model_input_names = ("input_ids", "attention_mask")

    @classmethod
    def from_pretrained(cls, name: Any, *args: Any, **kwargs: Any) -> Any:
        """transformers' own, and `"frambicus"` is the checkpoint of the repository."""
        return super().from_pretrained(located(name), *args, **kwargs)

    def task_id(self, task: str) -> int:
        """The id of a task's token. Raises InputError for a task that there is not."""
        if task not in TASK_TOKENS:
            raise InputError(f"there is no task {task}: expected one of {', '.join(TASK_TOKENS)}")
        return int(self.convert_tokens_to_ids(TASK_TOKENS[task]))

    def prompt(self, task: str, text: str = "") -> list[int]:
        """The ids of a prompt: start, `text` if there is any, the task's token."""
        said = self.encode(text, add_special_tokens=False) if text else []
        return [self.bos_token_id, *said, self.task_id(task)]

    def target(self, text: str) -> list[int]:
        """The ids that the model should say after a prompt: `text` and the end."""
        return [*self.encode(text, add_special_tokens=False), self.eos_token_id]
