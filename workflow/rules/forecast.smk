# Before a run is paid for: what it will cost. No part of `rule all`; `snakemake plan` asks for it.


rule plan:
    log:
        "<logs>/plan.log",
    localrule: True
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        configs=list(map(os.path.relpath, workflow.configfiles)),
        # A function: see rule page.
        settings=lambda wildcards: canonical_json(config),
    message:
        "Telling what the run will cost"
    shell:
        "copra plan {params.configs:q} --merged {params.settings:q} | tee {log}"
