# Ranked lists of the test queries (section 4.3): search for dual encoders, reranking for ColBERT and cross encoders.
rule retrieve:
    input:
        passages=one_line(lambda w: plan[w.dataset, w.run].vectors(w.get("shard"))),
        indexes=one_line(lambda w: plan[w.dataset, w.run].indexes(w.get("shard"))),
        queries=f"{RESULTS}/{{dataset}}/embeddings/{{run}}/queries.test.parquet",
    output:
        f"{RESULTS}/{{dataset}}/runs/{{run}}.parquet",
    log:
        f"{RESULTS}/{{dataset}}/logs/retrieve.{{run}}.log",
    benchmark:
        f"{RESULTS}/{{dataset}}/timings/retrieve.{{run}}.tsv"
    wildcard_constraints:
        dataset=exactly(plan.scattered(False)),
        run=one_of(plan.rows.ranked_by("search")),
    threads: 8
    resources:
        mem_mb=memory("search"),
        runtime=lambda w, attempt: 240 * attempt,
        gpu=1,
    params:
        settings=settings("retrieve"),
        index=lambda w, input: option("index", input.indexes),
    message:
        "{wildcards.dataset}: searching with {wildcards.run}"
    shell:
        "lead retrieve --passages {input.passages:q} --queries {input.queries:q} {params.index} --out {output:q}"
        " --settings {params.settings:q} --gpu {resources.gpu} --threads {threads} --log {log:q}"


# A corpus in shards: the lists over each are jobs of their own, and gathered.
use rule retrieve as retrieve_part with:
    output:
        temp(f"{RESULTS}/{{dataset}}/runs/{{run}}/part{{shard}}.parquet"),
    log:
        f"{RESULTS}/{{dataset}}/logs/retrieve.{{run}}{{shard}}.log",
    benchmark:
        f"{RESULTS}/{{dataset}}/timings/retrieve.{{run}}{{shard}}.tsv"
    wildcard_constraints:
        run=one_of(plan.rows.ranked_by("search")),
        shard=r"\.\d+of\d+",
    threads: 1
    message:
        "{wildcards.dataset}: searching passages{wildcards.shard} with {wildcards.run}"


rule gather_run:
    input:
        parts=one_line(lambda w: plan.datasets[w.dataset].parts("runs", w.run)),
        queries=f"{RESULTS}/{{dataset}}/embeddings/{{run}}/queries.test.parquet",
    output:
        f"{RESULTS}/{{dataset}}/runs/{{run}}.parquet",
    log:
        f"{RESULTS}/{{dataset}}/logs/retrieve.{{run}}.log",
    benchmark:
        f"{RESULTS}/{{dataset}}/timings/retrieve.{{run}}.tsv"
    wildcard_constraints:
        dataset=exactly(plan.scattered(True)),
        run=one_of(plan.rows.ranked_by("search")),
    threads: 1
    resources:
        mem_mb=memory("gather"),
        runtime=lambda w, attempt: 120 * attempt,
        gpu=0,
    params:
        settings=settings("retrieve"),
    message:
        "{wildcards.dataset}: gathering what {wildcards.run} found in each shard"
    shell:
        "lead retrieve --parts {input.parts:q} --queries {input.queries:q} --out {output:q}"
        " --settings {params.settings:q} --threads {threads} --log {log:q}"


rule rerank:
    input:
        model=one_line(lambda w: plan[w.dataset, w.run].model),
        corpus=one_line(lambda w: plan.datasets[w.dataset].corpus),
        queries=f"{DATA}/queries.test.parquet",
        ranked=one_line(lambda w: plan[w.dataset, w.run].rerank_from),
    output:
        f"{RESULTS}/{{dataset}}/runs/{{run}}.parquet",
    log:
        f"{RESULTS}/{{dataset}}/logs/rerank.{{run}}.log",
    benchmark:
        f"{RESULTS}/{{dataset}}/timings/rerank.{{run}}.tsv"
    wildcard_constraints:
        run=one_of(plan.rows.ranked_by("rerank")),
    threads: 8
    resources:
        mem_mb=memory("rerank"),
        runtime=lambda w, attempt: 720 * attempt,
        gpu=1,
    params:
        settings=settings("rerank"),
        execution=execution("rerank"),
    message:
        "{wildcards.dataset}: reranking with {wildcards.run}"
    shell:
        "lead rerank --model {input.model:q} --corpus {input.corpus:q} --queries {input.queries:q} --ranked {input.ranked:q}"
        " --out {output:q} --settings {params.settings:q} --execution {params.execution:q} --gpu {resources.gpu} --threads {threads} --log {log:q}"


# Lists that come with a collection, such as MS MARCO's top1000: a run like any other.
rule external:
    input:
        lists=one_line(lambda w: plan.datasets[w.dataset].external_files),
        corpus=one_line(lambda w: plan.datasets[w.dataset].corpus),
        queries=f"{DATA}/queries.test.parquet",
    output:
        f"{RESULTS}/{{dataset}}/runs/external.parquet",
    log:
        f"{RESULTS}/{{dataset}}/logs/external.log",
    benchmark:
        f"{RESULTS}/{{dataset}}/timings/external.tsv"
    threads: 1
    resources:
        mem_mb=memory("external"),
        runtime=lambda w, attempt: 120 * attempt,
        gpu=0,
    params:
        settings=settings("external"),
    message:
        "{wildcards.dataset}: reading the lists that come with the queries"
    shell:
        "lead external --corpus {input.corpus:q} --queries {input.queries:q} --out {output:q}"
        " --settings {params.settings:q} --threads {threads} --log {log:q}"
