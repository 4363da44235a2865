# Tables and figures. copra.experiment.outputs lists them, with the files that each is made of.


rule table:
    input:
        small=lambda wildcards: TABLES[wildcards.table].files(copra, "", large=False),
        large=lambda wildcards: ancient(TABLES[wildcards.table].files(copra, "", large=True)),
    output:
        table="<results>/tables/{table}.parquet",
    log:
        "<logs>/table/{table}.log",
    benchmark:
        "<benchmarks>/table/{table}.tsv"
    localrule: True
    threads: 1
    resources:
        mem_mb=2000,
        runtime=10,
    params:
        settings=lambda wildcards: table_settings(copra, wildcards.table),
        sources=lambda wildcards, input: TABLES[wildcards.table].options(copra, "", input.small, input.large),
        title=lambda wildcards: TABLES[wildcards.table].title,
    message:
        "Computing table {wildcards.table}: {params.title}"
    shell:
        "copra table --settings {params.settings:q} {params.sources} --output {output.table} > {log} 2>&1"


rule export:
    input:
        table="<results>/tables/{table}.parquet",
    output:
        csv=report(
            "<results>/tables/{table}.csv",
            caption=str(CAPTIONS / "{table}.rst"),
            category="Tables",
        ),
        md="<results>/tables/{table}.md",
        tex="<results>/tables/{table}.tex",
    log:
        "<logs>/export/{table}.log",
    benchmark:
        "<benchmarks>/export/{table}.tsv"
    localrule: True
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        settings=lambda wildcards: export_settings(copra),
    message:
        "Writing table {wildcards.table} as CSV, Markdown and LaTeX"
    shell:
        "copra export --settings {params.settings:q} --table {input.table}"
        " --csv {output.csv} --md {output.md} --tex {output.tex} > {log} 2>&1"


# A figure of a part of an experiment is in a folder, named by its subject: a node, a node and an objective, a curve.
rule figure:
    input:
        small=lambda wildcards: FIGURES[wildcards.figure].files(copra, wildcards.subject[1:], large=False),
        large=lambda wildcards: ancient(
            FIGURES[wildcards.figure].files(copra, wildcards.subject[1:], large=True)
        ),
    output:
        svg=report(
            "<results>/figures/{figure}{subject}.svg",
            caption=str(CAPTIONS / "{figure}.rst"),
            category="Figures",
        ),
        png="<results>/figures/{figure}{subject}.png",
    log:
        "<logs>/figure/{figure}{subject}.log",
    benchmark:
        "<benchmarks>/figure/{figure}{subject}.tsv"
    localrule: True
    threads: 1
    resources:
        mem_mb=2000,
        runtime=10,
    params:
        settings=lambda wildcards: figure_settings(copra, wildcards.figure, wildcards.subject[1:]),
        sources=lambda wildcards, input: FIGURES[wildcards.figure].options(
            copra, wildcards.subject[1:], input.small, input.large
        ),
        title=lambda wildcards: FIGURES[wildcards.figure].title,
    message:
        "Drawing figure {wildcards.figure}{wildcards.subject}: {params.title}"
    shell:
        "copra figure --settings {params.settings:q} {params.sources} --svg {output.svg} --png {output.png} > {log} 2>&1"


rule page:
    input:
        **report_sources(copra),
    output:
        page="<results>/report.html",
    log:
        "<logs>/page.log",
    benchmark:
        "<benchmarks>/page.tsv"
    localrule: True
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        # A function, since Snakemake would take {NAME} in a path of the config, as in ${NAME}, for a wildcard.
        settings=lambda wildcards: report_settings(copra),
    message:
        "Writing the report"
    shell:
        "copra page --settings {params.settings:q} --tables {input.tables} --figures {input.figures}"
        " --models {input.models} --output {output.page} > {log} 2>&1"
