// C++ owns the frame and receives joints and vertices; neither is copied on its way.
#pragma once

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
                                         frame->pitch, nb::arg("owner") = frame);
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
