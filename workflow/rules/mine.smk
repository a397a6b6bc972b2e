# Vectors of a dual encoder, and the hard negatives found with them.
# A corpus in shards is tokenized once for all models with the same tokenizer.
rule tokenize:
    input:
        texts=rules.prepare.output.corpus,
    output:
        directory(f"{RESULTS}/{{dataset}}/tokens/{{tokenizer}}/passages{{shard}}"),
    log:
        f"{RESULTS}/{{dataset}}/logs/tokenize.{{tokenizer}}{{shard}}.log",
    benchmark:
        f"{RESULTS}/{{dataset}}/timings/tokenize.{{tokenizer}}{{shard}}.tsv"
    wildcard_constraints:
        tokenizer="[^/]+",
        shard=r"|\.\d+of\d+",
    threads: 8
    resources:
        mem_mb=memory("tokenize"),
        runtime=lambda w, attempt: 120 * attempt,
        gpu=0,
    params:
        settings=settings("tokenize"),
    message:
        "{wildcards.dataset}: tokenizing passages{wildcards.shard} for {wildcards.tokenizer}"
    shell:
        "lead tokenize --texts {input.texts:q} --out {output:q}"
        " --settings {params.settings:q} --threads {threads} --log {log:q}"


rule encode_passages:
    input:
        model=one_line(lambda w: plan[w.dataset, w.run].model),
        texts=rules.prepare.output.corpus,
        tokens=one_line(lambda w: plan[w.dataset, w.run].tokens(w.shard)),
    output:
        f"{RESULTS}/{{dataset}}/embeddings/{{run}}/passages{{shard}}.parquet",
    log:
        f"{RESULTS}/{{dataset}}/logs/encode.{{run}}.passages{{shard}}.log",
    benchmark:
        f"{RESULTS}/{{dataset}}/timings/encode.{{run}}.passages{{shard}}.tsv"
    wildcard_constraints:
        shard=r"|\.\d+of\d+",
    threads: lambda w: plan.datasets[w.dataset].encode_threads
    resources:
        mem_mb=memory("encode_passages"),
        runtime=lambda w, attempt: 720 * attempt,
        gpu=1,
    params:
        settings=settings("encode"),
        execution=execution("encode"),
        tokens=lambda w, input: option("tokens", input.get("tokens")),
    message:
        "{wildcards.dataset}: encoding passages{wildcards.shard} with {wildcards.run}"
    shell:
        "lead encode --model {input.model:q} --texts {input.texts:q} {params.tokens} --out {output:q}"
        " --settings {params.settings:q} --execution {params.execution:q} --gpu {resources.gpu} --threads {threads} --log {log:q}"


use rule encode_passages as encode_queries with:
    input:
        model=one_line(lambda w: plan[w.dataset, w.run].model),
        texts=f"{DATA}/queries.{{split}}.parquet",
    output:
        f"{RESULTS}/{{dataset}}/embeddings/{{run}}/queries.{{split}}.parquet",
    log:
        f"{RESULTS}/{{dataset}}/logs/encode.{{run}}.queries.{{split}}.log",
    benchmark:
        f"{RESULTS}/{{dataset}}/timings/encode.{{run}}.queries.{{split}}.tsv"
    threads: 8
    resources:
        mem_mb=memory("encode_queries"),
        runtime=lambda w, attempt: 120 * attempt,
        gpu=1,
    message:
        "{wildcards.dataset}: encoding {wildcards.split} queries with {wildcards.run}"


# Approximate search (`retrieval.index`), one index a shard; without the key there is none, and search is exact.
rule index:
    input:
        vectors=f"{RESULTS}/{{dataset}}/embeddings/{{run}}/passages{{shard}}.parquet",
    output:
        directory(f"{RESULTS}/{{dataset}}/embeddings/{{run}}/index{{shard}}"),
    log:
        f"{RESULTS}/{{dataset}}/logs/index.{{run}}{{shard}}.log",
    benchmark:
        f"{RESULTS}/{{dataset}}/timings/index.{{run}}{{shard}}.tsv"
    wildcard_constraints:
        run=one_of(plan.rows.ranked_by("search")),
        shard=r"|\.\d+of\d+",
    threads: 8
    resources:
        mem_mb=memory("index"),
        runtime=lambda w, attempt: 240 * attempt,
        gpu=0,
    params:
        settings=settings("index"),
    message:
        "{wildcards.dataset}: indexing the vectors{wildcards.shard} of {wildcards.run}"
    shell:
        "lead index --passages {input.vectors:q} --out {output:q}"
        " --settings {params.settings:q} --threads {threads} --log {log:q}"


rule mine:
    input:
        passages=one_line(lambda w: plan[w.dataset, w.run].vectors(w.get("shard"))),
        indexes=one_line(lambda w: plan[w.dataset, w.run].indexes(w.get("shard"))),
        queries=expand(
            f"{RESULTS}/{{dataset}}/embeddings/{{run}}/queries.{{split}}.parquet",
            split=["train", "dev"],
            allow_missing=True,
        ),
        qrels=expand(f"{DATA}/qrels.{{split}}.parquet", split=["train", "dev"], allow_missing=True),
        corpus=rules.prepare.output.corpus,
    output:
        f"{RESULTS}/{{dataset}}/negatives/{{run}}.parquet",
    log:
        f"{RESULTS}/{{dataset}}/logs/mine.{{run}}.log",
    benchmark:
        f"{RESULTS}/{{dataset}}/timings/mine.{{run}}.tsv"
    wildcard_constraints:
        dataset=exactly(plan.scattered(False)),
        run=one_of(plan.rows.ranked_by("search")),
    threads: 8
    resources:
        mem_mb=memory("search"),
        runtime=lambda w, attempt: 240 * attempt,
        gpu=1,
    params:
        settings=settings("mine"),
        index=lambda w, input: option("index", input.indexes),
    message:
        "{wildcards.dataset}: mining hard negatives with {wildcards.run}"
    shell:
        "lead mine --passages {input.passages:q} --queries {input.queries:q} --qrels {input.qrels:q}"
        " --corpus {input.corpus:q} {params.index}"
        " --out {output:q} --settings {params.settings:q} --gpu {resources.gpu} --threads {threads} --log {log:q}"


use rule mine as mine_part with:
    output:
        temp(f"{RESULTS}/{{dataset}}/negatives/{{run}}/part{{shard}}.parquet"),
    log:
        f"{RESULTS}/{{dataset}}/logs/mine.{{run}}{{shard}}.log",
    benchmark:
        f"{RESULTS}/{{dataset}}/timings/mine.{{run}}{{shard}}.tsv"
    wildcard_constraints:
        run=one_of(plan.rows.ranked_by("search")),
        shard=r"\.\d+of\d+",
    threads: 1
    message:
        "{wildcards.dataset}: mining hard negatives in passages{wildcards.shard} with {wildcards.run}"


rule gather_negatives:
    input:
        parts=one_line(lambda w: plan.datasets[w.dataset].parts("negatives", w.run)),
        queries=rules.mine.input.queries,
        qrels=rules.mine.input.qrels,
    output:
        f"{RESULTS}/{{dataset}}/negatives/{{run}}.parquet",
    log:
        f"{RESULTS}/{{dataset}}/logs/mine.{{run}}.log",
    benchmark:
        f"{RESULTS}/{{dataset}}/timings/mine.{{run}}.tsv"
    wildcard_constraints:
        dataset=exactly(plan.scattered(True)),
        run=one_of(plan.rows.ranked_by("search")),
    threads: 1
    resources:
        mem_mb=memory("gather"),
        runtime=lambda w, attempt: 120 * attempt,
        gpu=0,
    params:
        settings=settings("mine"),
    message:
        "{wildcards.dataset}: gathering what {wildcards.run} mined in each shard"
    shell:
        "lead mine --parts {input.parts:q} --queries {input.queries:q} --qrels {input.qrels:q} --out {output:q}"
        " --settings {params.settings:q} --threads {threads} --log {log:q}"


rule denoise:
    input:
        model=one_line(lambda w: plan[w.dataset, w.by].model),
        corpus=rules.prepare.output.corpus,
        queries=expand(f"{DATA}/queries.{{split}}.parquet", split=["train", "dev"], allow_missing=True),
        qrels=expand(f"{DATA}/qrels.{{split}}.parquet", split=["train", "dev"], allow_missing=True),
        negatives=f"{RESULTS}/{{dataset}}/negatives/{{run}}.parquet",
    output:
        f"{RESULTS}/{{dataset}}/negatives/{{run}}.{{by}}.parquet",
    log:
        f"{RESULTS}/{{dataset}}/logs/denoise.{{run}}.{{by}}.log",
    benchmark:
        f"{RESULTS}/{{dataset}}/timings/denoise.{{run}}.{{by}}.tsv"
    wildcard_constraints:
        run=one_of(plan.rows),
        by=one_of(plan.rows.ranked_by("rerank")),
    threads: 8
    resources:
        mem_mb=memory("denoise"),
        runtime=lambda w, attempt: 720 * attempt,
        gpu=1,
    params:
        settings=settings("denoise"),
        execution=execution("denoise"),
    message:
        "{wildcards.dataset}: denoising the negatives of {wildcards.run} with {wildcards.by}"
    shell:
        "lead denoise --model {input.model:q} --corpus {input.corpus:q} --queries {input.queries:q} --qrels {input.qrels:q}"
        " --negatives {input.negatives:q} --out {output:q}"
        " --settings {params.settings:q} --execution {params.execution:q} --gpu {resources.gpu} --threads {threads} --log {log:q}"
