"""A repository that links the TensorFlow of a Python environment: headers and shared library."""

_BUILD = """
package(default_visibility = ["//visibility:public"])

cc_library(
    name = "headers",
    hdrs = glob(["include/**"], exclude = ["include/external/local_config_cuda/**"]),
    includes = ["include"],
)

cc_import(
    name = "framework",
    shared_library = "libtensorflow_framework.so.2",
)
"""

_FIND = "import importlib.util as u; " + \
        "print(u.find_spec('tensorflow').submodule_search_locations[0])"

def _tensorflow_configure(ctx):
    python = ctx.os.environ.get("PYTHON_BIN_PATH", "python3")
    found = ctx.execute([python, "-c", _FIND])
    if found.return_code != 0:
        fail("TensorFlow was not found by %s: %s" % (python, found.stderr))
    folder = found.stdout.strip()
    ctx.symlink(folder + "/include", "include")
    ctx.symlink(folder + "/libtensorflow_framework.so.2", "libtensorflow_framework.so.2")
    ctx.file("BUILD", _BUILD)

tensorflow_configure = repository_rule(
    implementation = _tensorflow_configure,
    environ = ["PYTHON_BIN_PATH"],
    local = True,
)
