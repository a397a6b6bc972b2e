# Metrics of a ranked list: the result of a run.
rule evaluate:
    input:
        ranked=f"{RESULTS}/{{dataset}}/runs/{{run}}.parquet",
        qrels=f"{DATA}/qrels.test.parquet",
    output:
        result=f"{RESULTS}/{{dataset}}/{{run}}.json",
        per_query=f"{RESULTS}/{{dataset}}/per_query/{{run}}.parquet",
    log:
        f"{RESULTS}/{{dataset}}/logs/evaluate.{{run}}.log",
    benchmark:
        f"{RESULTS}/{{dataset}}/timings/evaluate.{{run}}.tsv"
    wildcard_constraints:
        run=one_of(plan.rows),
    threads: 1
    resources:
        mem_mb=memory("evaluate"),
        runtime=lambda w, attempt: 60 * attempt,
        gpu=0,
    params:
        settings=settings("evaluate"),
    message:
        "{wildcards.dataset}: evaluating {wildcards.run}"
    shell:
        "lead evaluate --ranked {input.ranked:q} --qrels {input.qrels:q} --out {output.result:q} --per-query {output.per_query:q}"
        " --settings {params.settings:q} --threads {threads} --log {log:q}"
