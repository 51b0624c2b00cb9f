# %% [markdown]
# # Ground text to items with the index alone
#
# BIGRec lets an LLM write a title and takes the items whose title vectors are nearest to that of the text. The index
# works with any vectors; here they count letter triples, so no model is needed. A run uses the LLM's hidden states.

# %%
import zlib

import numpy as np

from recbole_llm.grounding import ItemIndex, popularity_weights, reweight

titles = [None, "Toy Story", "Toy Story 2", "The Lion King", "The Lion King", "Heat", "Casino", "Babe"]  # 0 is padding


def embed(texts: list[str]) -> np.ndarray:
    """Vectors of letter triples, of length 1: [texts, 256]."""
    table = np.zeros((len(texts), 256))
    for row, text in enumerate(texts):
        padded = f"  {text.lower()} "
        for start in range(len(padded) - 2):
            table[row, zlib.crc32(padded[start : start + 3].encode()) % 256] += 1
    return table / np.linalg.norm(table, axis=1, keepdims=True)


# %% [markdown]
# Items that share a title share a vector: the lowest id represents them (`representative`). An item without a title has
# no vector (a zero row) and is never found.

# %%
embeddings = np.vstack([np.zeros(256), embed(titles[1:])])
representative = np.array([titles.index(title) for title in titles])
index = ItemIndex(embeddings, representative=representative)

answers = ["Toy Storry 2", "Lion King, The", "heat"]  # what a model may write
queries = embed(answers)
distances, items = index.search(queries, k=3)
for answer, found, far in zip(answers, items, distances, strict=True):
    print(
        f"{answer:>15} -> "
        + ", ".join(f"{titles[item]} ({distance:.2f})" for item, distance in zip(found, far, strict=True))
    )

# %% [markdown]
# The rank of the true item, 0-based; ties go to the lower id.

# %%
print(index.rank_of(queries, targets=[1, 3, 5]))
assert index.rank_of(queries, targets=[2, 3, 5]).tolist() == [0, 0, 0]

# %% [markdown]
# Re-weighting moves popular items up: `gamma` says how much.

# %%
counts = np.array([0, 90, 5, 40, 40, 20, 10, 30])  # interactions of each item
weights = popularity_weights(counts, index.rankable)
for gamma in (0, 1, 10):
    order = reweight(index.distances(queries[1:2]), weights, gamma)[0].argsort(kind="stable")
    print(f"gamma {gamma:>2}: " + ", ".join(str(titles[item]) for item in order[:3]))
