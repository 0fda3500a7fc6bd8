"""The loop that one writes by hand: load the model, train a client, add its weights up."""

from __future__ import annotations

import torch

from benchmarks.rivals import workloads

workload, folder = workloads.asked()
torch.set_num_threads(workload.threads)
report, data = workloads.Report("plain loop", workload, folder), workloads.Data(workload, folder)
model = workloads.first_model(workload)
weights = {name: entry.clone() for name, entry in model.state_dict().items()}
report.mark()
for number, cohort in enumerate(workload.cohorts(), 1):
    total = {name: torch.zeros_like(entry) for name, entry in weights.items()}
    for client in cohort.tolist():
        model.load_state_dict(weights)
        workloads.train(model, data.shuffled(client, number), workload)
        for name, entry in model.state_dict().items():
            total[name].add_(entry, alpha=1 / workload.cohort)
    weights = total
    report.mark()
model.load_state_dict(weights)
report.write(model)
