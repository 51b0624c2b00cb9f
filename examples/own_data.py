# %% [markdown]
# # Bring your own data
#
# Two files in RecBole's atomic format: interactions with a time, and items with a title. The first line names each
# column and its type; columns are separated by tabs.

# %%
import random
from pathlib import Path

import recbole_llm

random.seed(0)
folder = Path("my_data/books")
folder.mkdir(parents=True, exist_ok=True)
whats, whoms = ("Book", "Song", "House", "Sea"), ("Dust", "Glass", "Salt", "Ash")
books = [f"The {what} of {whom}" for what in whats for whom in whoms]

lines = ["book_id:token\tname:token_seq", *(f"b{number}\t{title}" for number, title in enumerate(books, start=1))]
(folder / "books.item").write_text("\n".join(lines) + "\n", encoding="utf-8")

lines = ["reader_id:token\tbook_id:token\twhen:float"]
for reader in range(1, 31):
    start = random.randrange(len(books))
    for step in range(8):  # everybody reads on along the shelf
        lines.append(f"r{reader}\tb{(start + step) % len(books) + 1}\t{1_700_000_000 + 1000 * reader + step}")
(folder / "books.inter").write_text("\n".join(lines) + "\n", encoding="utf-8")

# %% [markdown]
# What the columns are called, where the titles are, and which words a prompt uses for items. The same settings can
# stand in a YAML file (`config_files=["books.yaml"]`) or on the command line.

# %%
columns = {
    "USER_ID_FIELD": "reader_id",
    "ITEM_ID_FIELD": "book_id",
    "TIME_FIELD": "when",
    "title_field": "name",
    "load_col": {"inter": ["reader_id", "book_id", "when"], "item": ["book_id", "name"]},
}
tiny = {"tiny_steps": 100, "tiny_hidden_size": 32, "num_beams": 2, "epochs": 2}
run = recbole_llm.run("BIGRec", "books", data_path="my_data", domain="book", **columns, **tiny, show_progress=False)
print(run.recommend(["The Book of Dust", "The Book of Glass"], k=3))
