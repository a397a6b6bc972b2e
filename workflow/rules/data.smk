# Packages whose docstrings are a collection, where its file pins some. Only this rule needs a package index.
rule packages:
    input:
        requirements=one_line(lambda w: plan.datasets[w.dataset].requirements),
    output:
        packages=directory(f"{RESULTS}/{{dataset}}/packages"),
    log:
        f"{RESULTS}/{{dataset}}/logs/packages.log",
    benchmark:
        f"{RESULTS}/{{dataset}}/timings/packages.tsv"
    wildcard_constraints:
        dataset=exactly(name for name in plan.collections() if plan.datasets[name].requirements),
    threads: 1
    resources:
        mem_mb=memory("packages"),
        runtime=lambda w, attempt: 60 * attempt,
        gpu=0,
    params:
        settings=settings("packages"),
    message:
        "{wildcards.dataset}: installing the packages that it reads"
    shell:
        "lead packages --requirements {input.requirements:q} --out {output.packages:q} --settings {params.settings:q} --threads {threads} --log {log:q}"


# Raw text to Parquet: corpus, queries and judgements of train, dev and test.
rule prepare:
    input:
        sources=one_line(lambda w: plan.datasets[w.dataset].source_files),
    output:
        corpus=f"{DATA}/corpus.parquet",
        queries=expand(f"{DATA}/queries.{{split}}.parquet", split=["train", "dev", "test"], allow_missing=True),
        qrels=expand(f"{DATA}/qrels.{{split}}.parquet", split=["train", "dev", "test"], allow_missing=True),
        report=f"{DATA}/report.json",
    log:
        f"{RESULTS}/{{dataset}}/logs/prepare.log",
    benchmark:
        f"{RESULTS}/{{dataset}}/timings/prepare.tsv"
    wildcard_constraints:
        dataset=exactly(plan.collections()),
    threads: 1
    resources:
        mem_mb=memory("prepare"),
        runtime=lambda w, attempt: 120 * attempt,
        gpu=0,
    params:
        settings=settings("prepare"),
        folder=f"{DATA}",
        corpus=lambda w, input: option("corpus", input.get("corpus")),
    message:
        "{wildcards.dataset}: preparing corpus, queries and judgements"
    shell:
        "lead prepare --out {params.folder:q} {params.corpus} --settings {params.settings:q} --threads {threads} --log {log:q}"


# More evaluation queries of a collection: corpus, models, embeddings and index are that one's.
use rule prepare as prepare_evaluation with:
    input:
        sources=one_line(lambda w: plan.datasets[w.dataset].source_files),
        corpus=one_line(lambda w: plan.datasets[w.dataset].corpus),
    output:
        queries=f"{DATA}/queries.test.parquet",
        qrels=f"{DATA}/qrels.test.parquet",
        report=f"{DATA}/report.json",
    wildcard_constraints:
        dataset=exactly(plan.evaluations()),
    message:
        "{wildcards.dataset}: preparing evaluation queries and judgements"
