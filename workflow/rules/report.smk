# The page about the runs of a dataset. `snakemake --report FILE` takes the page and its figures.
rule report:
    input:
        results=one_line(lambda w: targets(plan, w.dataset)),
        paper=one_line(lambda w: plan.checked_paper()),
    output:
        page=report(
            f"{RESULTS}/{{dataset}}/report.html",
            caption="../report/page.rst",
            category="{dataset}",
            subcategory="Page",
            labels={"figure": "all of it on one page"},
        ),
        quality=report(
            directory(f"{RESULTS}/{{dataset}}/report/quality"),
            patterns=["{figure}.svg", "{figure}.csv"],
            caption="../report/quality.rst",
            category="{dataset}",
            subcategory="Quality and cost",
            labels={"figure": "{figure}"},
        ),
        training=report(
            directory(f"{RESULTS}/{{dataset}}/report/training"),
            patterns=["{figure}.svg"],
            caption="../report/training.rst",
            category="{dataset}",
            subcategory="Training",
            labels={"figure": "{figure}"},
        ),
        stages=report(
            directory(f"{RESULTS}/{{dataset}}/report/stages"),
            patterns=["{figure}.svg"],
            caption="../report/stages.rst",
            category="{dataset}",
            subcategory="Time and memory",
            labels={"figure": "{figure}"},
        ),
    log:
        f"{RESULTS}/{{dataset}}/logs/report.log",
    threads: 1
    resources:
        mem_mb=memory("tables"),
        runtime=lambda w, attempt: 60 * attempt,
        gpu=0,
    params:
        config=plan.path(),
        overrides=plan.overrides(),
    message:
        "{wildcards.dataset}: the report"
    shell:
        "lead report {wildcards.dataset:q} --config {params.config:q} --overrides {params.overrides:q}"
        " --out {output.page:q} --log {log:q}"
