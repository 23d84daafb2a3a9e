"""The app of sdxl.py, its code untouched, over current releases; for a platform that lets the CPU stand in for a GPU.

    keepwarm up --cpu-fallback
    fal deploy examples/sdxl_cpu.py::SdxlCpu --auth public
    curl -X POST URL_THAT_IT_PRINTS -H "Content-Type: application/json" \
        -d '{"prompt":"a red circle on a blue background"}'

The model comes from the Hugging Face cache of the platform's data folder; examples/README.md says how to put the tiny
pipeline of examples/weights there.
"""

from sdxl import MyApp


class SdxlCpu(MyApp):
    app_name = "sdxl-cpu"
    requirements = ["torch==2.13.0", "diffusers>=0.42,<0.43", "transformers>=5,<6", "accelerate"]
