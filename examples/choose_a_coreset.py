# %% [markdown]
# # Choose the rows to train on
#
# Selectors are independent of RecBole and of models: they take row ids and the inputs that they need for each row, and
# return row ids. In a run, `--coreset=<name>` computes these inputs; here they are random.

# %%
import numpy as np

from recbole_llm.coreset import (
    DEALRecSelector,
    EL2NSelector,
    KCenterSelector,
    RandomSelector,
    goracs_select,
    proxy_objective,
)

rng = np.random.default_rng(7)
n_rows, budget = 2000, 100
ids = np.arange(n_rows)
kinds = rng.choice(4, size=n_rows, p=[0.7, 0.2, 0.07, 0.03])  # four kinds of rows, most of them of one kind
vectors = rng.normal(size=(4, 16))[kinds] * 2 + rng.normal(size=(n_rows, 16))  # [rows, d], of a model

# %% [markdown]
# A selector lists the inputs that it needs.

# %%
for need in (*DEALRecSelector.needs, *KCenterSelector.needs):
    print(f"{need.name}: {need.meaning}")

# %%
chosen = {
    "random": RandomSelector().select(ids, budget, seed=0),
    "k_center": KCenterSelector().select(ids, budget, seed=0, vectors=vectors),
    "el2n": EL2NSelector().select(ids, budget, seed=0, el2n=rng.gamma(2.0, size=n_rows)),
    "dealrec": DEALRecSelector(weight=0.3).select(
        ids, budget, seed=0, influence=rng.normal(size=n_rows), effort=rng.gamma(2.0, size=n_rows)
    ),
}
for name, selection in chosen.items():
    print(f"{name:>9}: {len(selection.ids)} rows, by kind {np.bincount(kinds[selection.ids], minlength=4).tolist()}")

# %% [markdown]
# GORACS selects rows for given validation rows: here these are of the two rarest kinds, and so are most selected rows.
# Its objective measures how well a selection represents them; smaller is better.

# %%
valid = vectors[kinds >= 2][:80] + 0.1 * rng.normal(size=(80, 16))
norms = rng.gamma(2.0, size=n_rows)  # of the gradients of the rows' losses
rows, info = goracs_select(vectors, valid, norms, budget, gradient_weight=0.1, return_info=True)
distances = np.linalg.norm(vectors[:, None] - valid[None], axis=2)
scaled = distances / distances.mean(), norms / norms.max()
for name, picked in {"random": chosen["random"].ids, "goracs": rows}.items():
    print(f"{name:>9}: objective {proxy_objective(*scaled, picked, 0.1):.3f}, rare {np.mean(kinds[picked] >= 2):.0%}")
assert np.mean(kinds[rows] >= 2) > np.mean(kinds[chosen["random"].ids] >= 2)
