# Distillation (section 3). With a frozen teacher one model comes out, with joint training the teacher's too.
rule distil:
    input:
        corpus=rules.prepare.output.corpus,
        queries=f"{DATA}/queries.train.parquet",
        qrels=f"{DATA}/qrels.train.parquet",
        dev_queries=f"{DATA}/queries.dev.parquet",
        dev_qrels=f"{DATA}/qrels.dev.parquet",
        negatives=one_line(lambda w: plan[w.dataset, w.run].negatives),
        start=one_line(lambda w: checked(plan[w.dataset, w.run]).start),
        teacher=one_line(lambda w: plan[w.dataset, w.run].teacher),
    output:
        model=directory(f"{RESULTS}/{{dataset}}/models/{{run}}"),
        metrics=f"{RESULTS}/{{dataset}}/metrics/{{run}}.jsonl",
    log:
        f"{RESULTS}/{{dataset}}/logs/distil.{{run}}.log",
    benchmark:
        f"{RESULTS}/{{dataset}}/timings/distil.{{run}}.tsv"
    wildcard_constraints:
        run=one_of(plan.rows.frozen()),
    retries: RETRIES
    threads: 8
    resources:
        mem_mb=memory("distil"),
        runtime=1440,
        gpu=lambda w: plan.datasets[w.dataset].gpus,
    params:
        settings=settings("distil"),
        execution=execution("distil"),
        teacher_out=lambda w, output: option("teacher-out", output.get("teacher")),
        state=f"{RESULTS}/{{dataset}}/state/{{run}}",
    message:
        "{wildcards.dataset}: distilling {wildcards.run} from a frozen teacher"
    shell:
        "exec lead distil --corpus {input.corpus:q} --queries {input.queries:q} --qrels {input.qrels:q}"
        " --dev-queries {input.dev_queries:q} --dev-qrels {input.dev_qrels:q} --negatives {input.negatives:q}"
        " --start {input.start:q} --teacher {input.teacher:q}"
        " --out {output.model:q} {params.teacher_out} --state {params.state:q} --metrics {output.metrics:q}"
        " --settings {params.settings:q} --execution {params.execution:q} --gpu {resources.gpu} --threads {threads} --log {log:q}"


use rule distil as distil_joint with:
    output:
        model=directory(f"{RESULTS}/{{dataset}}/models/{{run}}"),
        teacher=directory(f"{RESULTS}/{{dataset}}/models/{{run}}_teacher"),
        metrics=f"{RESULTS}/{{dataset}}/metrics/{{run}}.jsonl",
    wildcard_constraints:
        run=one_of(plan.rows.joint()),
    message:
        "{wildcards.dataset}: distilling {wildcards.run}, teacher and student trained jointly"
