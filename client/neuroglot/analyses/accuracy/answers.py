"""Tokenization of the gold answers, which bounds what scores of the first gold token can show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np

from neuroglot.analyses.base.context import Need
from neuroglot.analyses.base.fold import Fold, Measures
from neuroglot.results.results import GroupResult


class Answers(Fold):
    """Tokenization of the gold answers by language; a table without a figure.

    r is the first gold token (for an encoder-decoder, the first that is not only a space). If several answers share r,
    a right prediction of r is not yet a right answer.
    """

    name = "answers"
    title = "The answers as tokens"
    needs = frozenset({Need.ANSWERS})

    def measure(self, result: GroupResult) -> Measures:
        """Return `[rows, rows tokenized apart, prompt tokens, gold tokens]` by language and gold answer from r on."""
        return {
            (row.label, tuple(row.gold_token_ids[row.r_index :])): np.array(
                [1, not row.gold_is_joint, row.prompt_tokens, len(row.gold_token_ids)], dtype=np.int64
            )
            for row in result.rows
        }

    def definition(self) -> str:
        """Define r, and answers that share it."""
        skipping = " that is not only a space" if "encoder" in self.geometry else ""
        return (
            f"r is the first token of the gold answer{skipping}; an answer shares r if another answer of the "
            "same language also begins with it."
        )

    def records(self) -> Iterator[dict[str, object]]:
        """One row a language.

        Columns language, rows, mean_prompt_tokens, answers (distinct token sequences), mean_gold_tokens (of a row),
        sharing_first_token (answers that share their first token with another), tokenized_apart (rows whose prompt and
        answer are tokenized separately because the tokenizer would merge them).
        """
        return map(self._record, self.languages)

    def _record(self, language: str) -> dict[str, object]:
        by_answer = {
            answer: sums for (label, answer), sums in ((key, self.sums[key]) for key in self.sums) if label == language
        }
        rows, apart, prompt_tokens, gold_tokens = sum(by_answer.values(), np.zeros(4, dtype=np.int64))
        answers = [answer for answer in by_answer if answer]
        first_tokens = Counter(answer[0] for answer in answers)
        return {
            "language": language,
            "rows": int(rows),
            "mean_prompt_tokens": prompt_tokens / rows,
            "answers": len(answers),
            "mean_gold_tokens": gold_tokens / rows,
            "sharing_first_token": sum(first_tokens[answer[0]] > 1 for answer in answers),
            "tokenized_apart": int(apart),
        }
