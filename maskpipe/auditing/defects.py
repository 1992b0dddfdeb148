"""What the core finds (csrc/audit.h), by name: under which code it is reported, and in which words."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Defect:
    """One defect of the core."""

    code: str
    unit: str
    """What is counted: token, turn, document, run or row."""
    text: str
    """What is the matter with so many of them; read after "N tokens"."""

    def say(self, n: int) -> str:
        """The finding's text."""
        return f"{n:,} {self.unit}{'' if n == 1 else 's'} {self.text}"


DEFECTS = {
    "row_malformed": Defect("MP213", "row", "whose documents or runs do not tile it, or with values that do not exist"),
    "id_outside": Defect("MP401", "token", "outside the vocabulary"),
    "role_missing": Defect("MP201", "token", "of documents without a role or part"),
    "run_repeats": Defect("MP213", "run", "with the facts of the one before it"),
    "weights_malformed": Defect("MP213", "row", "whose weight ranges are out of order or no weights"),
    "n_loss": Defect("MP503", "row", "whose n_loss is not the number of its tokens with loss"),
    "padding_trained": Defect("MP206", "token", "of padding with loss"),
    "padding_wrong": Defect("MP207", "token", "of padding with another id than pad_id, or with facts"),
    "first_trained": Defect("MP204", "document", "whose first token has loss"),
    "straddler_trained": Defect("MP306", "token", "with loss that straddle the border of sampled text"),
    "empty_reasoning_trained": Defect("MP309", "token", "with loss in empty reasoning that the template added"),
    "weight_0_trained": Defect("MP313", "token", "with loss whose source weight is 0"),
    "other_trained": Defect(
        "MP301", "token", "with loss that are not the assistant's and that the recipe does not select"
    ),
    "header_trained": Defect("MP302", "token", "with loss before what the model would sample of the turn"),
    "after_stop_trained": Defect("MP312", "token", "with loss behind the end of the turn"),
    "refused_trained": Defect("MP308", "token", "with loss in turns whose verdict is refused or missing"),
    "not_chosen_trained": Defect("MP310", "token", "with loss in turns or parts that the recipe does not choose"),
    "history_trained": Defect("MP307", "token", "with loss in turns whose context is not what inference would feed"),
    "not_trained": Defect("MP311", "token", "without loss that the recipe trains"),
    "stop_not_trained": Defect("MP303", "turn", "trained without a trained stop token at the end"),
    "turn_without_stop": Defect("MP314", "turn", "trained that the template ends without a stop token"),
    "stop_unknown": Defect("MP316", "turn", "ending with a token that is no stop token here"),
    "stop_doubled": Defect("MP405", "turn", "with something behind the stop token that counts as stop, too"),
    "sampled_elsewhere": Defect("MP317", "token", "flagged as sampled that the model does not write"),
    "header_sampled": Defect("MP302", "token", "of headers flagged as sampled"),
    "start_not_sampled": Defect("MP311", "token", "at the beginning of turns not flagged as sampled"),
    "hole": Defect("MP311", "token", "inside turns not flagged as sampled"),
    "turn_not_sampled": Defect(
        "MP311", "turn", "of which nothing is flagged as sampled, although the verdict allows it"
    ),
    "turn_order": Defect("MP216", "turn", "standing behind a later one"),
    "text_after_own_turn": Defect("MP216", "document", "that go on behind the turn they were made for"),
    "nothing_trained": Defect("MP304", "document", "without a token with loss"),
    "single_token": Defect("MP215", "document", "of a single token"),
    "chat_cut": Defect("MP214", "piece", "of conversations that packing cut"),
    "bos_missing": Defect("MP402", "document", "beginning without the BOS token that the template writes"),
    "bos_doubled": Defect("MP403", "document", "beginning with more BOS tokens than the template writes"),
    "control_in_content": Defect("MP404", "control token", "inside the content of messages"),
    "marks_unbalanced": Defect("MP406", "turn", "in which marks that open and close, such as <think>, are no pairs"),
    "unknown_token": Defect("MP407", "token", "that the tokenizer does not know"),
    "pair_incomplete": Defect("MP217", "answer", "of pairs whose other answer is not in the row"),
    "pair_collapsed": Defect("MP322", "pair", "whose two answers are the same tokens"),
}
"""Name of the core → what it means."""
