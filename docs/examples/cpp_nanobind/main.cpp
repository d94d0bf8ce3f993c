// A program in C++ that runs Python inside: main, the frame and the results are C++'s.
#include "pipeline.hpp"

#include <cstdio>
#include <cstdlib>

extern "C" PyObject *PyInit_cpp_pipeline();

// Starts the interpreter of `PYTHON_PROGRAM`, so that the packages of its environment are found.
static bool start_python() {
  PyConfig config;
  PyConfig_InitPythonConfig(&config);
  PyStatus status = PyConfig_SetBytesString(&config, &config.executable, PYTHON_PROGRAM);
  if (!PyStatus_Exception(status)) status = Py_InitializeFromConfig(&config);
  PyConfig_Clear(&config);
  if (PyStatus_Exception(status)) std::fprintf(stderr, "error: Python does not start: %s\n", status.err_msg);
  return !PyStatus_Exception(status);
}

static int run(int count) {
  nb::module_::import_("cpp_pipeline");  // registers Frame
  nb::object estimator = nb::module_::import_("metro_edge").attr("MeshEstimator").attr("from_bundle")();
  {
    const Pipeline pipeline(estimator);
    for (int number = 0; number < count; ++number) {
      auto frame = std::make_shared<Frame>(640, 480, "nv12");
      for (std::size_t y = 0; y < frame->rows; ++y)  // a grey ramp stands for the camera's picture
        std::memset(frame->row(y), y < 480 ? int(16 + (y + 40 * number) % 220) : 128, frame->row_bytes);
      for (const Person &person : pipeline(frame, {{160.f, 0.f, 320.f, 480.f}}))
        std::printf("frame %d: %zu joints, lowest point %.3f m\n", number, person.joints.shape(0), person.lowest_m());
    }
  }
  estimator.attr("close")();
  return 0;
}

int main(int argc, char **argv) {
  const int count = argc > 1 ? std::atoi(argv[1]) : 3;
  PyImport_AppendInittab("cpp_pipeline", &PyInit_cpp_pipeline);
  if (!start_python()) return 2;
  int code = 2;
  try {
    code = run(count);
  } catch (const nb::python_error &error) {  // its what() would add the traceback
    std::fprintf(stderr, "error: %s\n", nb::str(error.value()).c_str());
  } catch (const std::exception &error) {
    std::fprintf(stderr, "error: %s\n", error.what());
  }
  if (Py_FinalizeEx() < 0) code = 1;
  if (frames_alive != 0) code = 1;
  return code;
}
