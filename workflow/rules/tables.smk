# Tables, and what writes them for machines and for people.


rule accuracy_table:
    input:
        metrics=expand("<results>/evaluations/{node}/metrics.json", node=copra.ends),
        predictions=ancient(expand("<results>/evaluations/{node}/predictions.parquet", node=copra.ends)),
        times=["<results>/latency.parquet"] if copra.timed else [],
    output:
        table="<results>/tables/accuracy_vs_flops.parquet",
    log:
        "<logs>/table/accuracy_vs_flops.log",
    benchmark:
        "<benchmarks>/table/accuracy_vs_flops.tsv"
    localrule: True
    threads: 1
    resources:
        mem_mb=2000,
        runtime=10,
    params:
        settings=lambda wildcards: copra.table_settings("accuracy_vs_flops"),
        evaluations=lambda wildcards, input: above(input.metrics, 2),
    message:
        "Drawing up accuracy against FLOPs"
    shell:
        "copra table --settings {params.settings:q} --evaluations {params.evaluations}"
        " --latency {input.times} --output {output.table} > {log} 2>&1"


rule pruning_table:
    input:
        metrics=expand("<results>/evaluations/{node}/metrics.json", node=copra.before_and_after),
        predictions=ancient(
            expand("<results>/evaluations/{node}/predictions.parquet", node=copra.before_and_after)
        ),
    output:
        table="<results>/tables/before_fine_tuning.parquet",
    log:
        "<logs>/table/before_fine_tuning.log",
    benchmark:
        "<benchmarks>/table/before_fine_tuning.tsv"
    localrule: True
    threads: 1
    resources:
        mem_mb=2000,
        runtime=10,
    params:
        settings=lambda wildcards: copra.table_settings("before_fine_tuning"),
        evaluations=lambda wildcards, input: above(input.metrics, 2),
    message:
        "Drawing up accuracy right after pruning"
    shell:
        "copra table --settings {params.settings:q} --evaluations {params.evaluations}"
        " --output {output.table} > {log} 2>&1"


rule latents_table:
    input:
        swept=expand("<results>/evaluations/{node}/latents.parquet", node=copra.swept),
    output:
        table="<results>/tables/accuracy_vs_latents.parquet",
    log:
        "<logs>/table/accuracy_vs_latents.log",
    benchmark:
        "<benchmarks>/table/accuracy_vs_latents.tsv"
    localrule: True
    threads: 1
    resources:
        mem_mb=2000,
        runtime=10,
    params:
        settings=lambda wildcards: copra.table_settings("accuracy_vs_latents"),
        evaluations=lambda wildcards, input: above(input.swept, 2),
    message:
        "Drawing up accuracy against the number of latents"
    shell:
        "copra table --settings {params.settings:q} --evaluations {params.evaluations}"
        " --output {output.table} > {log} 2>&1"


rule lens_table:
    input:
        seen=expand("<results>/evaluations/{node}/lens.parquet", node=copra.seen_through),
    output:
        table="<results>/tables/latent_lens.parquet",
    log:
        "<logs>/table/latent_lens.log",
    benchmark:
        "<benchmarks>/table/latent_lens.tsv"
    localrule: True
    threads: 1
    resources:
        mem_mb=2000,
        runtime=10,
    params:
        settings=lambda wildcards: copra.table_settings("latent_lens"),
        evaluations=lambda wildcards, input: above(input.seen, 2),
    message:
        "Drawing up what latents would say"
    shell:
        "copra table --settings {params.settings:q} --evaluations {params.evaluations}"
        " --output {output.table} > {log} 2>&1"


rule curves_table:
    input:
        curves=expand("<results>/curves/{measured}.parquet", measured=copra.measured),
    output:
        table="<results>/tables/pruning_curves.parquet",
    log:
        "<logs>/table/pruning_curves.log",
    benchmark:
        "<benchmarks>/table/pruning_curves.tsv"
    localrule: True
    threads: 1
    resources:
        mem_mb=2000,
        runtime=10,
    params:
        settings=lambda wildcards: copra.table_settings("pruning_curves"),
        curves=lambda wildcards, input: above(input.curves, 2),
    message:
        "Drawing up the pruning curves"
    shell:
        "copra table --settings {params.settings:q} --curves {params.curves}"
        " --output {output.table} > {log} 2>&1"


rule orders_table:
    input:
        manifests=[
            f"<results>/models/{node}/copra.json" for curve in copra.ordered for node in copra.curved[curve]
        ],
        scores=copra.ordered_scores,
        tables=tables(copra.ordered_scores),
    output:
        table="<results>/tables/drop_orders.parquet",
    log:
        "<logs>/table/drop_orders.log",
    benchmark:
        "<benchmarks>/table/drop_orders.tsv"
    localrule: True
    threads: 1
    resources:
        mem_mb=2000,
        runtime=10,
    params:
        settings=lambda wildcards: copra.table_settings("drop_orders"),
        models=lambda wildcards, input: above(input.manifests, 2),
        scores=lambda wildcards, input: above(input.scores, 3),
    message:
        "Drawing up the orders in which layers go"
    shell:
        "copra table --settings {params.settings:q} --scores {params.scores} --models {params.models}"
        " --output {output.table} > {log} 2>&1"


rule export:
    input:
        table="<results>/tables/{table}.parquet",
    output:
        csv=report(
            "<results>/tables/{table}.csv",
            caption="../report/{table}.rst",
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
        settings=lambda wildcards: copra.export_settings(),
    message:
        "Writing table {wildcards.table} as CSV, Markdown and LaTeX"
    shell:
        "copra export --settings {params.settings:q} --table {input.table}"
        " --csv {output.csv} --md {output.md} --tex {output.tex} > {log} 2>&1"
