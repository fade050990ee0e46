"""The labels in doubt as a small application in a notebook: photos, buttons and keys, by ipywidgets alone."""

from __future__ import annotations

import html
import time
from typing import Any

import ipywidgets as widgets
import numpy as np

from goods.data.photos import photos_in
from goods.data.tables import Goods
from goods.errors import GoodsError
from goods.page import photo_html
from goods.review import Review, like

SIDE, SMALL_SIDE = 300, 104  # pixels of the product's photos, and of its neighbours'
SHOWN_TEXT = 1200  # letters of a text
STYLE = f"""<style>.review-product {{display: flex; flex-wrap: wrap; gap: 1em; line-height: 1.35}}
.review-photos img {{min-width: {SIDE * 2 // 3}px}}</style>"""
PAUSE = 0.25  # seconds between two keys that both count: a key that is held down decides once
ACTIONS = {"keep": ("k", "keep the label"), "change": ("c", "change it to"), "drop": ("d", "drop the product"),
           "skip": ("s", "skip for now"), "back": ("b", "take back")}  # fmt: skip
ACTION_OF = {key: action for action, (key, _) in ACTIONS.items()}
NO_NEIGHBOURS = "No similar products are shown: the run has no embeddings; notebooks/embed.ipynb makes them."


class ReviewBox(widgets.VBox):
    """One product in doubt at a time, and five buttons, each with its key.

    vectors: of the training products, for their neighbours, or None. finished: what to say when all is decided.
    """

    def __init__(self, review: Review, goods: Goods, vectors: np.ndarray | None, finished: str = "") -> None:
        self.review, self.goods, self.vectors, self.finished = review, goods, vectors, finished
        self.place = {name: row for row, name in enumerate(goods.train["id"])}
        self.typed, self.last_key, self.clock = 0, -PAUSE, time.monotonic
        self.progress, self.card, self.said = (widgets.HTML() for _ in range(3))
        self.classes = widgets.Dropdown(options=review.words, layout={"width": "auto", "max_width": "22em"})
        self.buttons = {action: self._button(action) for action in ACTIONS}
        self.typing = widgets.Text(placeholder="click here for the keys k c d s b", layout={"width": "17em"})
        self.typing.observe(self._on_keys, "value")
        for name in ("progress", "card", "said", "classes", "typing"):
            getattr(self, name).add_class(f"review-{name}")
        keep, change, *others = self.buttons.values()
        row = widgets.HBox([keep, change, self.classes, *others, self.typing], layout={"flex_flow": "row wrap"})
        super().__init__([self.progress, row, self.said, self.card])

    def act(self, action: str) -> None:
        """Does what a button or key stands for, and shows the next product."""
        name, label = self.review.current, ""
        try:
            if action == "back":
                self.review.take_back()
            elif name is not None:
                label = self.classes.value if action == "change" else ""
                self.review.decide(name, action, label)
        except GoodsError as error:  # in the notebook it would only be seen in the log
            self.said.value = f"<b>{html.escape(str(error))}</b>"
            return
        self.show()
        if action != "back" and name is not None:
            done = f"{action} {label}".strip()
            self.said.value = f"<small>{html.escape(name)}: {html.escape(done)}, kept</small>"

    def show(self) -> None:
        """Shows the product to look at now."""
        name, counts = self.review.current, self.review.counts()
        decided = ", ".join(f"{count} {decision}" for decision, count in counts.items() if decision != "left")
        total = len(self.review.issues)
        done = total - counts["left"] - counts["skip"]
        self.progress.value = (f"<progress max='{max(total, 1)}' value='{done}'></progress> {done} of {total} decided "
                            f"({decided}); in {html.escape(str(self.review.path))}")  # fmt: skip
        self.said.value = ""
        for action, button in self.buttons.items():
            button.disabled = self.review.latest is None if action == "back" else name is None
        if name is None:
            self.card.value = f"<p><b>Nothing is left to decide.</b> {html.escape(self.finished)}</p>"
            return
        self.classes.value = self.review.issue(name)["suggested"]
        self.card.value = self._card(name)

    def _button(self, action: str) -> widgets.Button:
        key, what = ACTIONS[action]
        button = widgets.Button(description=f"{what} ({key})", layout={"width": "auto"})
        button.add_class(f"review-{action}")
        button.on_click(lambda _: self._clicked(action))
        return button

    def _clicked(self, action: str) -> None:
        self.act(action)
        self.typing.focus()

    def _on_keys(self, change: dict[str, str]) -> None:
        """Takes the letter typed last: the field is never cleared from here, which would race with what is typed."""
        new, now = change["new"][self.typed :], self.clock()
        self.typed = len(change["new"])
        held, self.last_key = now - self.last_key < PAUSE, now if new else self.last_key
        if new and not held and (action := ACTION_OF.get(new[-1].lower())):
            self.act(action)

    def _card(self, name: str) -> str:
        """The product as HTML: photos, title, text, given and suggested label, the products most like it."""
        issue, product = self.review.issue(name), self.goods.train.iloc[self.place[name]]
        photos = photos_in(self.goods.train.iloc[[self.place[name]]])[0]
        photos = photos if isinstance(photos, tuple) else (photos,)
        pictures = "".join(photo_html(path, SIDE) for path in photos[:3]) or photo_html("", SIDE)
        text = product["text"]
        text = text[:SHOWN_TEXT] + (" ..." if len(text) > SHOWN_TEXT else "")
        facts = [f"<h3>{html.escape(product['title'])}</h3>", f"<p>{html.escape(text)}</p>",
                 f"<p>given: <b>{html.escape(issue['given'])}</b>, suggested: <b>{html.escape(issue['suggested'])}</b>"
                 f" (margin {issue['margin']:.2f}), id {html.escape(name)}</p>"]  # fmt: skip
        head = f"<div class='review-photos'>{pictures}</div><div style='flex:1 1 20em'>{''.join(facts)}</div>"
        return f"{STYLE}<div class='review-product'>{head}</div>{self._neighbours(name)}"

    def _neighbours(self, name: str) -> str:
        if self.vectors is None:
            return f"<p><small>{NO_NEIGHBOURS}</small></p>"
        near = "".join(map(_neighbour, like(self.vectors, self.goods, name).itertuples()))
        return f"<h4>The products most like it</h4><div class='review-product'>{near}</div>"


def _neighbour(row: Any) -> str:
    words = [f"<b>{html.escape(row.of_class)}</b>", html.escape(row.title[:60]), f"{row.cosine:.2f}"]
    return (f"<div style='width:{SMALL_SIDE + 16}px'>{photo_html(row.image, SMALL_SIDE)}<br>"
            f"<small>{'<br>'.join(words)}</small></div>")  # fmt: skip
