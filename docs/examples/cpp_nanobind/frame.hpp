// A frame that C++ owns, as a camera or a decoder would give it: rows with a gap, no Python.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>

inline std::atomic<int> frames_alive{0};

class Frame {
 public:
  // `format` is "bgr" or "nv12"; `pitch` is rounded up to 64 bytes, as most hardware does.
  Frame(int width, int height, std::string format)
      : width(width), height(height), format(std::move(format)) {
    if (width < 1 || height < 1 || (this->format != "bgr" && this->format != "nv12"))
      throw std::invalid_argument("a frame needs a size and the format bgr or nv12");
    row_bytes = std::size_t(width) * (this->format == "bgr" ? 3 : 1);
    pitch = (row_bytes + kAlign - 1) / kAlign * kAlign;
    rows = this->format == "nv12" ? std::size_t(height) * 3 / 2 : std::size_t(height);  // Y, then UV
    memory_.reset(new (std::align_val_t(kAlign)) std::uint8_t[rows * pitch]);
    std::memset(memory_.get(), 0xEE, rows * pitch);  // the gaps hold nothing of the picture
    ++frames_alive;
  }
  Frame(const Frame &) = delete;
  Frame &operator=(const Frame &) = delete;
  ~Frame() { --frames_alive; }

  std::uint8_t *row(std::size_t y) const { return memory_.get() + y * pitch; }
  std::uintptr_t address() const { return reinterpret_cast<std::uintptr_t>(memory_.get()); }

  const int width, height;
  const std::string format;
  std::size_t row_bytes = 0, pitch = 0, rows = 0;

 private:
  static constexpr std::size_t kAlign = 64;
  struct Free {
    void operator()(std::uint8_t *memory) const { ::operator delete[](memory, std::align_val_t(kAlign)); }
  };
  std::unique_ptr<std::uint8_t[], Free> memory_;
};
