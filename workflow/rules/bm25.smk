# BM25: a run of its own, and the negatives of the miner.
rule bm25:
    input:
        corpus=rules.prepare.output.corpus,
        queries=expand(f"{DATA}/queries.{{split}}.parquet", split=["train", "dev"], allow_missing=True),
        qrels=expand(f"{DATA}/qrels.{{split}}.parquet", split=["train", "dev"], allow_missing=True),
        test_queries=f"{DATA}/queries.test.parquet",
    output:
        negatives=f"{RESULTS}/{{dataset}}/negatives/bm25.parquet",
        ranked=f"{RESULTS}/{{dataset}}/runs/bm25.parquet",
    log:
        f"{RESULTS}/{{dataset}}/logs/bm25.log",
    benchmark:
        f"{RESULTS}/{{dataset}}/timings/bm25.tsv"
    wildcard_constraints:
        dataset=exactly(plan.collections()),
    threads: 2
    resources:
        mem_mb=memory("bm25"),
        runtime=lambda w, attempt: 240 * attempt,
        gpu=0,
    params:
        settings=settings("bm25"),
    message:
        "{wildcards.dataset}: BM25 lists and negatives"
    shell:
        "lead bm25 --corpus {input.corpus:q} --queries {input.queries:q} --qrels {input.qrels:q}"
        " --test-queries {input.test_queries:q} --negatives {output.negatives:q} --ranked {output.ranked:q}"
        " --settings {params.settings:q} --threads {threads} --log {log:q}"


rule bm25_evaluation:
    input:
        corpus=one_line(lambda w: plan.datasets[w.dataset].corpus),
        test_queries=f"{DATA}/queries.test.parquet",
    output:
        f"{RESULTS}/{{dataset}}/runs/bm25.parquet",
    log:
        f"{RESULTS}/{{dataset}}/logs/bm25.log",
    benchmark:
        f"{RESULTS}/{{dataset}}/timings/bm25.tsv"
    wildcard_constraints:
        dataset=exactly(plan.evaluations()),
    threads: 2
    resources:
        mem_mb=memory("bm25"),
        runtime=lambda w, attempt: 240 * attempt,
        gpu=0,
    params:
        settings=settings("bm25"),
    message:
        "{wildcards.dataset}: BM25 lists"
    shell:
        "lead bm25 --corpus {input.corpus:q} --test-queries {input.test_queries:q} --ranked {output:q}"
        " --settings {params.settings:q} --threads {threads} --log {log:q}"
