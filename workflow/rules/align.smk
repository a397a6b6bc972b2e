# Alignment without labels: the student learns a dual encoder teacher's vectors of passages and queries.
rule align:
    input:
        corpus=rules.prepare.output.corpus,
        queries=f"{DATA}/queries.train.parquet",
        dev_queries=f"{DATA}/queries.dev.parquet",
        dev_qrels=f"{DATA}/qrels.dev.parquet",
        texts=one_line(lambda w: plan[w.dataset, w.run].texts),
        more_queries=one_line(lambda w: plan[w.dataset, w.run].more_queries),
        start=one_line(lambda w: checked(plan[w.dataset, w.run]).start),
        encoder=one_line(lambda w: plan[w.dataset, w.run].encoder_files),
        teacher=one_line(lambda w: plan[w.dataset, w.run].teacher),
        passages=one_line(lambda w: plan[w.dataset, w.run].taught_passages),
    output:
        model=directory(f"{RESULTS}/{{dataset}}/models/{{run}}"),
        metrics=f"{RESULTS}/{{dataset}}/metrics/{{run}}.jsonl",
    log:
        f"{RESULTS}/{{dataset}}/logs/align.{{run}}.log",
    benchmark:
        f"{RESULTS}/{{dataset}}/timings/align.{{run}}.tsv"
    wildcard_constraints:
        run=one_of(plan.rows.of_stage("align")),
    retries: RETRIES
    threads: 8
    resources:
        mem_mb=memory("align"),
        runtime=1440,
        gpu=lambda w: plan.datasets[w.dataset].gpus,
    params:
        settings=settings("align"),
        execution=execution("align"),
        texts=lambda w, input: f"{option('texts', input.texts)} {option('more-queries', input.more_queries)}",
        start=lambda w, input: option("start", input.start),
        state=f"{RESULTS}/{{dataset}}/state/{{run}}",
    message:
        "{wildcards.dataset}: aligning {wildcards.run} with its teacher"
    shell:
        "exec lead align --corpus {input.corpus:q} --queries {input.queries:q}"
        " --dev-queries {input.dev_queries:q} --dev-qrels {input.dev_qrels:q} {params.texts} {params.start}"
        " --teacher {input.teacher:q} --passages {input.passages:q} --out {output.model:q} --state {params.state:q} --metrics {output.metrics:q}"
        " --settings {params.settings:q} --execution {params.execution:q} --gpu {resources.gpu} --threads {threads} --log {log:q}"
