"""The gold answers as tokens: what a reader must know before trusting a score of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np

from neuroglot.analyses.base.context import Need
from neuroglot.analyses.base.fold import Fold, Measures
from neuroglot.results.results import GroupResult


class Answers(Fold):
    """How the answers are tokenized, by language; a table without a figure.

    r is the first gold token (of an encoder-decoder, the first that is more than a space). Where different answers
    share it, to get r right is not yet to give the answer.
    """

    name = "answers"
    title = "The answers as tokens"
    needs = frozenset({Need.ANSWERS})

    def measure(self, result: GroupResult) -> Measures:
        """For each language and gold answer from r on, `[rows, rows tokenized apart, prompt and gold tokens]`."""
        return {
            (row.label, tuple(row.gold_token_ids[row.r_index :])): np.array(
                [1, not row.gold_is_joint, row.prompt_tokens, len(row.gold_token_ids)], dtype=np.int64
            )
            for row in result.rows
        }

    def definition(self) -> str:
        """What r is, and what it is to share it."""
        skipping = " that is more than a space" if "encoder" in self.geometry else ""
        return (
            f"r is the first token of the gold answer{skipping}; an answer shares it if another answer of that "
            "language begins with it, too."
        )

    def records(self) -> Iterator[dict[str, object]]:
        """One row a language.

        Columns language, rows, mean_prompt_tokens, answers (different ones, as tokens), mean_gold_tokens (of a row),
        sharing_first_token (answers whose first token begins another one, too), tokenized_apart (rows whose prompt and
        answer the tokenizer would merge).
        """
        return map(self._record, self.languages)

    def _record(self, language: str) -> dict[str, object]:
        by_answer = {
            answer: sums for (label, answer), sums in ((key, self.sums[key]) for key in self.sums) if label == language
        }
        rows, apart, prompt_tokens, gold_tokens = sum(by_answer.values(), np.zeros(4, dtype=np.int64))
        answers = [answer for answer in by_answer if answer]
        beginnings = Counter(answer[0] for answer in answers)
        return {
            "language": language,
            "rows": int(rows),
            "mean_prompt_tokens": prompt_tokens / rows,
            "answers": len(answers),
            "mean_gold_tokens": gold_tokens / rows,
            "sharing_first_token": sum(beginnings[answer[0]] > 1 for answer in answers),
            "tokenized_apart": int(apart),
        }
