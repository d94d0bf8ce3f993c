// C++ owns the frame and receives joints and vertices; neither is copied on its way.
#include "frame.hpp"

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <array>
#include <exception>
#include <limits>
#include <thread>
#include <vector>

namespace nb = nanobind;
using namespace nb::literals;

using Box = std::array<float, 4>;  // x, y, width, height in px
// NumPy's memory seen from C++. Holding one keeps the array alive, and nothing else of Python.
using Points = nb::ndarray<const float, nb::shape<-1, 3>, nb::c_contig, nb::device::cpu>;

struct Person {
  Points joints, vertices;                // metres, camera frame, from the root joint
  std::array<float, 3> translation;       // metres, the root joint in the camera frame

  // The lowest point of the mesh (y points down), as an example of work in C++.
  float lowest_m() const {
    float lowest = -std::numeric_limits<float>::infinity();
    const auto view = vertices.view();
    for (std::size_t i = 0; i < view.shape(0); ++i) lowest = std::max(lowest, view(i, 1));
    return lowest + translation[1];
  }
};

class Pipeline {
 public:
  explicit Pipeline(nb::object estimator)
      : estimator_(std::move(estimator)),
        from_pointer_(nb::module_::import_("metro_edge").attr("HostFrame").attr("from_pointer")) {}

  // The caller holds the GIL; the engine releases it while the network runs. Raises what the estimator raises.
  std::vector<Person> operator()(const std::shared_ptr<Frame> &frame, const std::vector<Box> &boxes) const {
    // `owner` shares the ownership with Python: the frame lives until nobody looks at it any more.
    nb::object described = from_pointer_(frame->address(), frame->width, frame->height, frame->format,
                                         frame->pitch, "owner"_a = frame);
    std::vector<Person> people;
    for (nb::handle body : estimator_(described, boxes))
      // `convert` is false: an array that does not fit is an error, not a copy.
      people.push_back({nb::cast<Points>(body.attr("joints"), false), nb::cast<Points>(body.attr("vertices"), false),
                        nb::cast<std::array<float, 3>>(body.attr("translation"))});
    return people;
  }

  // The same on a thread of C++'s own, as a capture library calls back.
  std::vector<Person> on_a_thread(const std::shared_ptr<Frame> &frame, const std::vector<Box> &boxes) const {
    std::vector<Person> people;
    std::exception_ptr error;
    {
      nb::gil_scoped_release others_may_run;
      std::thread capture([&] {
        nb::gil_scoped_acquire this_thread_calls_python;
        try {
          people = (*this)(frame, boxes);
        } catch (...) {
          error = std::current_exception();
        }
      });
      capture.join();
    }
    if (error) std::rethrow_exception(error);
    return people;
  }

 private:
  nb::object estimator_, from_pointer_;
};

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
