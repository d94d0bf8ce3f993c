// The Python module: what tests and Python programs use of pipeline.hpp.
#include "pipeline.hpp"

using namespace nb::literals;

// What a camera does: it writes rows, and leaves the gaps between them alone.
void fill(Frame &frame, const nb::ndarray<const std::uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu> &rows) {
  if (rows.shape(0) != frame.rows || rows.shape(1) != frame.row_bytes)
    throw std::invalid_argument("the rows do not fit the frame");
  for (std::size_t y = 0; y < frame.rows; ++y)
    std::memcpy(frame.row(y), rows.data() + y * frame.row_bytes, frame.row_bytes);
}

NB_MODULE(cpp_pipeline, m) {
  m.doc() = "A pipeline in C++ around metro_edge.MeshEstimator.";
  m.def("frames_alive", [] { return frames_alive.load(); }, "How many frames C++ has not freed.");
  nb::class_<Frame>(m, "Frame")
      .def(nb::init<int, int, std::string>(), "width"_a, "height"_a, "format"_a = "bgr")
      .def("fill", &fill, "rows"_a, "Write (rows, row bytes) uint8: of NV12 first Y, then UV.")
      .def_ro("pitch", &Frame::pitch)
      .def_prop_ro("address", &Frame::address);
  nb::class_<Person>(m, "Person")
      .def_ro("joints", &Person::joints)
      .def_ro("vertices", &Person::vertices)
      .def_prop_ro("joints_address", [](const Person &p) { return std::uintptr_t(p.joints.data()); })
      .def_prop_ro("vertices_address", [](const Person &p) { return std::uintptr_t(p.vertices.data()); })
      .def_prop_ro("lowest_m", &Person::lowest_m);
  nb::class_<Pipeline>(m, "Pipeline")
      .def(nb::init<nb::object>(), "estimator"_a)
      .def("__call__", &Pipeline::operator(), "frame"_a, "boxes"_a)
      .def("on_a_thread", &Pipeline::on_a_thread, "frame"_a, "boxes"_a);
}
