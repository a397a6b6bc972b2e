# A teacher's scores, asked once: of the passages that train queries are trained with (row key `scores`).
rule score:
    input:
        model=one_line(lambda w: plan[w.dataset, w.run].model),
        corpus=rules.prepare.output.corpus,
        queries=f"{DATA}/queries.train.parquet",
        qrels=f"{DATA}/qrels.train.parquet",
        negatives=one_line(lambda w: plan[w.dataset, w.run].negatives),
    output:
        f"{RESULTS}/{{dataset}}/scores/{{run}}.parquet",
    log:
        f"{RESULTS}/{{dataset}}/logs/score.{{run}}.log",
    benchmark:
        f"{RESULTS}/{{dataset}}/timings/score.{{run}}.tsv"
    wildcard_constraints:
        run=one_of([*plan.rows.ranked_by("search"), *plan.rows.ranked_by("rerank")]),
    threads: 8
    resources:
        mem_mb=memory("denoise"),
        runtime=lambda w, attempt: 720 * attempt,
        gpu=1,
    params:
        settings=settings("score"),
        execution=execution("score"),
    message:
        "{wildcards.dataset}: scoring train passages with {wildcards.run}"
    shell:
        "lead score --model {input.model:q} --corpus {input.corpus:q} --queries {input.queries:q} --qrels {input.qrels:q}"
        " --negatives {input.negatives:q} --out {output:q}"
        " --settings {params.settings:q} --execution {params.execution:q} --gpu {resources.gpu} --threads {threads} --log {log:q}"


rule distil_scores:
    input:
        corpus=rules.prepare.output.corpus,
        queries=f"{DATA}/queries.train.parquet",
        qrels=f"{DATA}/qrels.train.parquet",
        dev_queries=f"{DATA}/queries.dev.parquet",
        dev_qrels=f"{DATA}/qrels.dev.parquet",
        negatives=one_line(lambda w: plan[w.dataset, w.run].negatives),
        start=one_line(lambda w: checked(plan[w.dataset, w.run]).start),
        scores=one_line(lambda w: plan[w.dataset, w.run].scores),
    output:
        model=directory(f"{RESULTS}/{{dataset}}/models/{{run}}"),
        metrics=f"{RESULTS}/{{dataset}}/metrics/{{run}}.jsonl",
    log:
        f"{RESULTS}/{{dataset}}/logs/distil.{{run}}.log",
    benchmark:
        f"{RESULTS}/{{dataset}}/timings/distil.{{run}}.tsv"
    wildcard_constraints:
        run=one_of(plan.rows.scored()),
    retries: RETRIES
    threads: 8
    resources:
        mem_mb=memory("distil"),
        runtime=1440,
        gpu=lambda w: plan.datasets[w.dataset].gpus,
    params:
        settings=settings("distil"),
        execution=execution("distil"),
        state=f"{RESULTS}/{{dataset}}/state/{{run}}",
    message:
        "{wildcards.dataset}: distilling {wildcards.run} from scores"
    shell:
        "exec lead distil --corpus {input.corpus:q} --queries {input.queries:q} --qrels {input.qrels:q}"
        " --dev-queries {input.dev_queries:q} --dev-qrels {input.dev_qrels:q} --negatives {input.negatives:q}"
        " --start {input.start:q} --scores {input.scores:q}"
        " --out {output.model:q} --state {params.state:q} --metrics {output.metrics:q}"
        " --settings {params.settings:q} --execution {params.execution:q} --gpu {resources.gpu} --threads {threads} --log {log:q}"
