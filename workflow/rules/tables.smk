# The paper's tables, rebuilt from every run of the dataset (`runs` of its file, or all that make sense).
rule tables:
    input:
        results=one_line(lambda w: targets(plan, w.dataset)),
        paper=one_line(lambda w: plan.checked_paper()),
    output:
        multiext(f"{RESULTS}/{{dataset}}/tables/all", ".md", ".html"),
    log:
        f"{RESULTS}/{{dataset}}/logs/tables.log",
    threads: 1
    resources:
        mem_mb=memory("tables"),
        runtime=lambda w, attempt: 60 * attempt,
        gpu=0,
    params:
        results=f"{RESULTS}/{{dataset}}",
        config=plan.path(),
        overrides=plan.overrides(),
    message:
        "{wildcards.dataset}: the paper's tables"
    shell:
        "lead tables {wildcards.dataset:q} --results {params.results:q} --config {params.config:q} --overrides {params.overrides:q} --log {log:q}"
