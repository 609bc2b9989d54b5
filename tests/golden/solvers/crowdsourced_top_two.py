"""Truth for the top-two estimator: full singular value decompositions, the model's likelihood in mpmath, SciPy, PyTorch."""

import itertools

import mpmath
import numpy as np
import torch
from scipy.optimize import minimize_scalar

from refnorm.conformance import GoldenCase, Tolerance

mpmath.mp.dps = 50


def draw(rng, workers, tasks, choices, rate):
    """Answers from the model, by its definition."""
    p, q = rng.uniform(0.2, 0.95, workers), rng.uniform(0.55, 0.95, tasks)
    answers = np.zeros((workers, tasks), dtype=np.int64)
    for j in range(tasks):
        g, h = rng.permutation(choices)[:2] + 1
        for i in range(workers):
            if rng.random() < rate:
                chance = np.full(choices, (1 - p[i]) / choices)
                chance[g - 1] += p[i] * q[j]
                chance[h - 1] += p[i] * (1 - q[j])
                answers[i, j] = 1 + rng.choice(choices, p=chance)
    return answers, p, q


def spectral(answers, choices):
    workers, tasks = answers.shape
    rate = np.count_nonzero(answers) / answers.size
    matrices, vectors = [], []
    for k in range(1, choices):
        matrix = np.zeros(answers.shape)
        for i, j in itertools.product(range(workers), range(tasks)):
            sign = 0 if answers[i, j] == 0 else (1 if answers[i, j] > k else -1)
            matrix[i, j] = sign - rate * (choices - 2 * k) / choices
        u = np.linalg.svd(matrix)[0][:, 0]
        matrices.append(matrix)
        vectors.append(u if u.sum() > 0 else -u)
    direction = np.clip(sum(vectors) / (choices - 1), 0, 1)
    w = [np.zeros(tasks), *(matrix.T @ direction / (2 * rate) for matrix in matrices), np.zeros(tasks)]
    delta = np.array([w[k] - w[k - 1] for k in range(1, choices + 1)]).T
    first = np.array([np.argsort(row)[0] + 1 for row in delta])
    second = np.array([np.argsort(row)[1] + 1 for row in delta])
    share = np.array([np.mean([y in (first[j], second[j]) for j, y in enumerate(row) if y]) for row in answers])
    reliability = np.clip((share - 2 / choices) / (1 - 2 / choices), 0.001, 0.999)
    top = np.array([delta[j, first[j] - 1] for j in range(tasks)])
    certainty = np.clip(1 / choices - top / np.sqrt(np.sum(reliability**2)), 0.501, 0.999)
    return first, second, reliability, certainty, -delta, np.ones(tasks, bool)


def log_ratio(answers, j, g, h, choices, p, q):
    """Log-likelihood of a pair minus that of pure guessing, from the model's probabilities."""
    total = mpmath.mpf(0)
    for i, y in enumerate(answers[:, j]):
        if y:
            know = mpmath.mpf(float(p[i]))
            guess = (1 - know) / choices
            prefer = q if y == g else (1 - q if y == h else mpmath.mpf(0))
            total += mpmath.log((know * prefer + guess) / guess)
    return total


def likely(answers, choices, p, q):
    pairs = list(itertools.permutations(range(1, choices + 1), 2))
    best, values = [], []
    for j in range(answers.shape[1]):
        found = [log_ratio(answers, j, g, h, choices, p, mpmath.mpf(float(q[j]))) for g, h in pairs]
        values.append(float(max(found)))
        best.append(pairs[found.index(max(found))])
    return np.array([g for g, _ in best]), np.array([h for _, h in best]), np.array(values)


def refined(answers, choices, first, second, p):
    certainty = []
    for j in range(answers.shape[1]):

        def negative(q, j=j):
            odds = p / (1 - p)
            said = answers[:, j]
            a = np.log1p(choices * q * odds)[said == first[j]].sum()
            return -(a + np.log1p(choices * (1 - q) * odds)[said == second[j]].sum())

        certainty.append(minimize_scalar(negative, bounds=(0.5, 1), method="bounded", options={"xatol": 1e-11}).x)
    return np.array(certainty)


def dawid_skene(answers, choices, steps):
    """Expectation maximization entry by entry."""
    workers, tasks = answers.shape
    posterior = np.array([[np.mean(column[column > 0] == k) for k in range(1, choices + 1)] for column in answers.T])
    likelihoods, changes = [], []
    for _ in range(steps):
        prior = posterior.mean(axis=0)
        table = np.full((workers, choices, choices), 0.01)
        for i, j in itertools.product(range(workers), range(tasks)):
            if answers[i, j]:
                table[i, :, answers[i, j] - 1] += posterior[j]
        confusion = table / table.sum(axis=2, keepdims=True)
        old, posterior, total = posterior, np.zeros((tasks, choices)), 0.0
        for j in range(tasks):
            joint = prior.copy()
            for i in range(workers):
                if answers[i, j]:
                    joint = joint * confusion[i, :, answers[i, j] - 1]
            total += np.log(joint.sum())
            posterior[j] = joint / joint.sum()
        likelihoods.append(total)
        changes.append(np.abs(posterior - old).max())
    order = np.argsort(-posterior, axis=1)
    history = (np.array(likelihoods), np.array(changes))
    return posterior, confusion, prior, order[:, 0] + 1, order[:, 1] + 1, steps, False, history


def cases():
    rng = np.random.default_rng(20230101)
    found = []
    for workers, tasks, choices, rate in ((12, 20, 4, 1.0), (15, 9, 5, 0.7), (9, 30, 3, 0.6)):
        answers, p, q = draw(rng, workers, tasks, choices, rate)
        answers[0, answers.max(axis=0) == 0] = 1
        answers[answers.max(axis=1) == 0, 0] = 1
        name = f"{workers} workers, {tasks} tasks, {choices} choices"
        estimate = spectral(answers, choices)
        found.append(
            GoldenCase(
                function="solvers.top_two_spectral",
                name=name,
                args=(answers, choices),
                expected=estimate,
                tolerance=Tolerance(1e-11, "relative_of_largest"),
                source="numpy.linalg.svd, entry by entry",
            )
        )
        found.append(
            GoldenCase(
                function="solvers.top_two_likelihood",
                name=name,
                args=(answers, choices, p, q),
                expected=likely(answers, choices, p, q),
                tolerance=Tolerance(1e-13, "relative_of_largest"),
                source="the model's likelihood in mpmath, 50 digits",
            )
        )
        first, second, _ = likely(answers, choices, estimate[2], estimate[3])
        certainty = refined(answers, choices, first, second, estimate[2])
        found.append(
            GoldenCase(
                function="solvers.top_two",
                name=name,
                args=(answers, choices),
                expected=(first, second, estimate[2], certainty, estimate[4], estimate[5]),
                tolerance=Tolerance(2e-7, "relative_of_largest"),
                source="the likelihood in mpmath; certainty by scipy.optimize.minimize_scalar",
            )
        )
        found.append(
            GoldenCase(
                function="solvers.dawid_skene",
                name=f"four steps, {name}",
                args=(answers, choices),
                options={"max_iter": 4, "tol": 0.0},
                expected=dawid_skene(answers, choices, 4),
                tolerance=Tolerance(1e-11, "relative_of_largest"),
                source="entry by entry in float64",
            )
        )
    found.append(
        GoldenCase(
            function="solvers.majority_top_two",
            name="ties by hand",
            args=(np.array([[3, 1, 0], [3, 2, 0], [2, 3, 0], [2, 0, 0]]), 4),
            expected=(np.array([2, 1, 1]), np.array([3, 2, 2])),
            source="by hand",
        )
    )
    half = np.array([0.5, 0.5])
    found.append(
        GoldenCase(
            function="solvers.top_two_likelihood",
            name="two workers by hand",
            args=(np.array([[2], [3]]), 3, half, np.array([0.75])),
            expected=(np.array([2]), np.array([3]), np.array([np.log(3.25) + np.log(1.75)])),
            tolerance=Tolerance(2, "ulp"),
            source="by hand: log(3 * 0.75 + 1) + log(3 * 0.25 + 1)",
        )
    )
    logits, certainty = 2 * rng.standard_normal((6, 5)), rng.uniform(0.5, 1, 6)
    first = rng.integers(1, 6, 6)
    second = 1 + first % 5
    for reduction, cotangent in (("mean", np.array(0.7)), ("none", rng.standard_normal(6))):
        a, q = (torch.tensor(array, requires_grad=True) for array in (logits, certainty))
        one_hot = [torch.nn.functional.one_hot(torch.tensor(y - 1), 5).double() for y in (first, second)]
        target = q[:, None] * one_hot[0] + (1 - q)[:, None] * one_hot[1]
        loss = torch.nn.functional.cross_entropy(a, target, reduction=reduction)
        loss.backward(torch.tensor(cotangent))
        common = {
            "function": "solvers.soft_label_cross_entropy",
            "name": reduction,
            "args": (logits, first, second, certainty),
            "options": {"reduction": reduction},
            "tolerance": Tolerance(1e-14, "relative_of_largest"),
            "source": f"torch {torch.__version__.split('+')[0]}, float64",
        }
        found.append(GoldenCase(**common, expected=loss.detach().numpy()))
        found.append(GoldenCase(**common, cotangent=cotangent, expected=(a.grad.numpy(), q.grad.numpy())))
    return found
