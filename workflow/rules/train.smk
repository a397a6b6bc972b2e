# Ready retrievers, as they are.
rule pretrained:
    input:
        encoder=one_line(lambda w: plan[w.dataset, w.run].encoder_files),
    output:
        directory(f"{RESULTS}/{{dataset}}/models/{{run}}"),
    log:
        f"{RESULTS}/{{dataset}}/logs/pretrained.{{run}}.log",
    benchmark:
        f"{RESULTS}/{{dataset}}/timings/pretrained.{{run}}.tsv"
    wildcard_constraints:
        run=one_of(plan.rows.of_stage("pretrained")),
    threads: 1
    resources:
        mem_mb=memory("pretrained"),
        runtime=lambda w, attempt: 60 * attempt,
        gpu=0,
    params:
        settings=settings("pretrained"),
    message:
        "{wildcards.dataset}: taking {wildcards.run} as it is"
    shell:
        "lead pretrained --out {output:q} --settings {params.settings:q} --threads {threads} --log {log:q}"


# Training with the contrastive loss: the miner, the warm-up of teachers and student, the control student_more, and ADORE.
rule train:
    input:
        corpus=rules.prepare.output.corpus,
        queries=f"{DATA}/queries.train.parquet",
        qrels=f"{DATA}/qrels.train.parquet",
        dev_queries=f"{DATA}/queries.dev.parquet",
        dev_qrels=f"{DATA}/qrels.dev.parquet",
        negatives=one_line(lambda w: plan[w.dataset, w.run].negatives),
        start=one_line(lambda w: checked(plan[w.dataset, w.run]).start),
        encoder=one_line(lambda w: plan[w.dataset, w.run].encoder_files),
        passages=one_line(lambda w: plan[w.dataset, w.run].passages),
    output:
        model=directory(f"{RESULTS}/{{dataset}}/models/{{run}}"),
        metrics=f"{RESULTS}/{{dataset}}/metrics/{{run}}.jsonl",
    log:
        f"{RESULTS}/{{dataset}}/logs/train.{{run}}.log",
    benchmark:
        f"{RESULTS}/{{dataset}}/timings/train.{{run}}.tsv"
    wildcard_constraints:
        run=one_of(plan.rows.of_stage("train")),
    retries: RETRIES
    threads: 8
    resources:
        mem_mb=memory("train"),
        runtime=1440,
        gpu=lambda w: plan.datasets[w.dataset].gpus,
    params:
        settings=settings("train"),
        execution=execution("train"),
        start=lambda w, input: option("start", input.start),
        passages=lambda w, input: option("passages", input.passages),
        state=f"{RESULTS}/{{dataset}}/state/{{run}}",
    message:
        "{wildcards.dataset}: training {wildcards.run}"
    shell:
        "exec lead train --corpus {input.corpus:q} --queries {input.queries:q} --qrels {input.qrels:q}"
        " --dev-queries {input.dev_queries:q} --dev-qrels {input.dev_qrels:q} --negatives {input.negatives:q} {params.start} {params.passages}"
        " --out {output.model:q} --state {params.state:q} --metrics {output.metrics:q}"
        " --settings {params.settings:q} --execution {params.execution:q} --gpu {resources.gpu} --threads {threads} --log {log:q}"
