# %% [markdown]
# # Curriculum weights by hand
#
# SOFT trains on a model's own answers first and on the true titles later. The weight of the model's own answers in an
# epoch depends on how far the model still is from the true titles, compared with the untuned model. These are the
# formulas.

# %%
import numpy as np

from recbole_llm.curriculum import AdaptiveCurriculum, FixedCurriculum, adaptive_weight, mean_distance, target_weights

rng = np.random.default_rng(0)
true = rng.normal(size=(50, 8))  # embeddings of the true titles, [rows, d]
written = [true + spread * rng.normal(size=true.shape) for spread in (2.0, 1.2, 0.7, 0.4)]  # of four epochs' answers
distances = [mean_distance(answers, true) for answers in written]
print("distances by epoch:", np.round(distances, 2))

# %% [markdown]
# The weight of the next epoch is 1 before training and falls as the answers approach the true titles; with a large
# `alpha` it falls fast.

# %%
for alpha in (0.5, 1.0, 5.0):
    weights = [adaptive_weight(distance, distances[0], alpha) for distance in distances]
    print(f"alpha {alpha}: {np.round(weights, 3)}")
    assert weights[0] == 1 and weights == sorted(weights, reverse=True)

# %% [markdown]
# A curriculum wraps this for a trainer: from the distances so far to the weight of the next epoch, then to the weights
# of the two losses. A loss without weight need not be computed.

# %%
curriculum = AdaptiveCurriculum(alpha=5.0)
for epoch in range(1, len(distances) + 1):
    print(f"epoch {epoch}:", target_weights(curriculum.weight(distances[:epoch])))
print("fixed:", target_weights(FixedCurriculum(0.25).weight([])))
