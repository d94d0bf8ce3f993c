// Graphs by stream capture. A graph is a row of nodes, each what a stream was given; a launch gives all of them again,
// so that they are checked and counted as if they came one by one. Captures over several streams are refused.
#include <string.h>

#include <algorithm>
#include <thread>

#include "state.h"

using namespace virtual_gpu;

namespace virtual_gpu {

struct GraphNode {
  Node node;
  std::vector<void *> arguments;  // of a kernel, where cuGraphKernelNodeGetParams points: the form that was given
};

struct Graph {
  std::vector<std::unique_ptr<GraphNode>> nodes;
};

struct Capture {
  std::thread::id thread;
  CUstreamCaptureMode mode;
  uint64_t id;
  bool valid = true;
  Graph *graph = nullptr;
  CUgraphNode last = nullptr;
  ~Capture();
};

struct Exec {
  std::vector<Node> nodes;
  std::map<GraphNode *, size_t> number;
  Place last{nullptr, 0};  // a graph does not run beside itself
};

static std::set<Graph *> graphs;  // those that were not destroyed
static std::set<Exec *> execs;
static thread_local CUstreamCaptureMode thread_mode = CU_STREAM_CAPTURE_MODE_GLOBAL;

static void destroy(Graph *graph) {
  graphs.erase(graph);
  delete graph;
}

Capture::~Capture() {
  if (graph) destroy(graph);
}

CUresult invalidate(Stream *stream, CUresult result, const char *what) {
  stream->capture->valid = false;
  return refuse(result, "%s: the capture is void", what);
}

// Makes void the captures that `chosen` picks; returns `result` if there was one.
template <class F> CUresult invalidate_all(F chosen, CUresult result, const char *what) {
  CUresult answer = CUDA_SUCCESS;
  for (Stream *stream : streams)
    if (stream->capture && chosen(stream)) answer = invalidate(stream, result, what);
  return answer;
}

// The default stream would wait for another, of its context.
static bool tied(Stream *stream, Stream *other) {
  return stream == &other->context->legacy && !(other->flags & CU_STREAM_NON_BLOCKING);
}

static CUresult refused_as_default(Stream *stream) {
  return invalidate_all([=](Stream *other) { return tied(stream, other); }, CUDA_ERROR_STREAM_CAPTURE_IMPLICIT,
                        "use of the default stream");
}

CUresult refused_by_capture(Stream *stream) {
  if (stream->capture && !stream->capture->valid) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
  return refused_as_default(stream);
}

CUresult forbidden_by_capture(const char *function) {
  if (thread_mode == CU_STREAM_CAPTURE_MODE_RELAXED) return CUDA_SUCCESS;
  auto forbids = [](Stream *stream) {
    const Capture &capture = *stream->capture;
    if (capture.thread == std::this_thread::get_id()) return capture.mode != CU_STREAM_CAPTURE_MODE_RELAXED;
    return capture.mode == CU_STREAM_CAPTURE_MODE_GLOBAL && thread_mode == CU_STREAM_CAPTURE_MODE_GLOBAL;
  };
  return invalidate_all(forbids, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, function);
}

CUresult forbidden_to_wait(const char *function, Stream *stream) {
  if (stream->capture) return invalidate(stream, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, function);
  return refused_as_default(stream);
}

CUresult forbidden_to_wait_for_all(const char *function, Context *context) {
  auto own = [=](Stream *stream) { return stream->context == context; };
  return invalidate_all(own, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, function);
}

static CUresult run(const Node &node, Stream *stream) {
  return node.type == CU_GRAPH_NODE_TYPE_KERNEL ? launch(node.kernel, stream) : node.run(stream);
}

CUresult submit(Stream *stream, Node node) {
  if (!stream->capture) return run(node, stream);
  auto made = std::make_unique<GraphNode>();
  made->node = std::move(node);
  if (KernelCall &call = made->node.kernel; call.extra_bytes)
    made->arguments = {CU_LAUNCH_PARAM_BUFFER_POINTER, call.packed.data(), CU_LAUNCH_PARAM_BUFFER_SIZE,
                       &call.extra_bytes, CU_LAUNCH_PARAM_END};
  else if (call.function)
    for (unsigned i = 0; i < call.function->kernel->parameter_count; ++i)
      made->arguments.push_back((char *)call.packed.data() + call.function->kernel->parameters[i].offset);
  stream->capture->last = (CUgraphNode)made.get();
  stream->capture->graph->nodes.push_back(std::move(made));
  return CUDA_SUCCESS;
}

static GraphNode *node_of(CUgraphNode handle) {  // null where its graph was destroyed
  for (Graph *graph : graphs)
    for (auto &node : graph->nodes)
      if (node.get() == (GraphNode *)handle) return node.get();
  return nullptr;
}

static Graph *graph_of(CUgraph handle) { return graphs.count((Graph *)handle) ? (Graph *)handle : nullptr; }
static Exec *exec_of(CUgraphExec handle) { return execs.count((Exec *)handle) ? (Exec *)handle : nullptr; }

// The two layouts of parameters begin alike.
template <class P> CUresult get_parameters(CUgraphNode handle, P *out) {
  GraphNode *found = node_of(handle);
  if (!found || found->node.type != CU_GRAPH_NODE_TYPE_KERNEL) return CUDA_ERROR_INVALID_VALUE;
  const KernelCall &call = found->node.kernel;
  memset(out, 0, sizeof *out);
  out->func = (CUfunction)call.function;
  out->gridDimX = call.grid[0], out->gridDimY = call.grid[1], out->gridDimZ = call.grid[2];
  out->blockDimX = call.block[0], out->blockDimY = call.block[1], out->blockDimZ = call.block[2];
  (call.extra_bytes ? out->extra : out->kernelParams) = found->arguments.data();
  return CUDA_SUCCESS;
}

template <class P> CUresult set_parameters(CUgraphExec exec, CUgraphNode handle, const P *given) {
  Exec *known = exec_of(exec);
  GraphNode *node = node_of(handle);
  if (!known || !node || !known->number.count(node) || node->node.type != CU_GRAPH_NODE_TYPE_KERNEL)
    return refuse(CUDA_ERROR_INVALID_VALUE, "parameters for what is no kernel of this graph, or was destroyed");
  if (!given->func) return refuse(CUDA_ERROR_NOT_SUPPORTED, "a kernel of a library as node");
  const unsigned grid[] = {given->gridDimX, given->gridDimY, given->gridDimZ};
  const unsigned block[] = {given->blockDimX, given->blockDimY, given->blockDimZ};
  KernelCall call;
  if (CUresult result = prepare(&call, (Function *)given->func, grid, block, given->sharedMemBytes,
                                given->kernelParams, given->extra))
    return result;
  known->nodes[known->number[node]].kernel = std::move(call);
  return CUDA_SUCCESS;
}

}  // namespace virtual_gpu

DRIVER cuThreadExchangeStreamCaptureMode(CUstreamCaptureMode *mode) {
  ENTER(true);
  std::swap(*mode, thread_mode);
  return CUDA_SUCCESS;
}
DRIVER cuStreamBeginCapture_v2(CUstream stream, CUstreamCaptureMode mode) {
  ENTER(true);
  static uint64_t captures = 0;
  Stream *known = stream_of(stream);
  if (!known) return CUDA_ERROR_INVALID_HANDLE;
  if ((int)mode < 0 || (int)mode > (int)CU_STREAM_CAPTURE_MODE_RELAXED) return CUDA_ERROR_INVALID_VALUE;
  if (known == &known->context->legacy)
    return refuse(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "capture of the default stream");
  if (known->capture) return CUDA_ERROR_ILLEGAL_STATE;
  known->capture = std::make_shared<Capture>();
  known->capture->thread = std::this_thread::get_id();
  known->capture->mode = mode;
  known->capture->id = ++captures;
  graphs.insert(known->capture->graph = new Graph());
  return CUDA_SUCCESS;
}
DRIVER cuStreamEndCapture(CUstream stream, CUgraph *graph) {
  ENTER(true);
  Stream *known = stream_of(stream);
  if (!known) return CUDA_ERROR_INVALID_HANDLE;
  if (!known->capture) return CUDA_ERROR_ILLEGAL_STATE;
  if (known->capture->mode != CU_STREAM_CAPTURE_MODE_RELAXED && known->capture->thread != std::this_thread::get_id()) {
    known->capture = nullptr;  // as seen on an H200: it is over all the same
    return CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD;
  }
  auto ended = std::move(known->capture);
  *graph = ended->valid ? (CUgraph)std::exchange(ended->graph, nullptr) : nullptr;
  return ended->valid ? CUDA_SUCCESS : CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
}

static CUresult status_of(CUstream stream, CUstreamCaptureStatus *status, Capture **capture) {
  Stream *known = stream_of(stream);
  if (!known) return CUDA_ERROR_INVALID_HANDLE;
  for (Stream *other : streams)  // asking makes no capture void
    if (other->capture && tied(known, other)) return CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
  *capture = known->capture.get();
  *status = !known->capture         ? CU_STREAM_CAPTURE_STATUS_NONE
            : known->capture->valid ? CU_STREAM_CAPTURE_STATUS_ACTIVE
                                    : CU_STREAM_CAPTURE_STATUS_INVALIDATED;
  return CUDA_SUCCESS;
}
DRIVER cuStreamIsCapturing(CUstream stream, CUstreamCaptureStatus *status) {
  ENTER(true);
  Capture *capture = nullptr;
  return status_of(stream, status, &capture);
}
DRIVER cuStreamGetCaptureInfo_v2(CUstream stream, CUstreamCaptureStatus *status, cuuint64_t *id, CUgraph *graph,
                                 const CUgraphNode **dependencies, size_t *count) {
  ENTER(true);
  Capture *capture = nullptr;
  CUresult result = status_of(stream, status, &capture);
  if (result != CUDA_SUCCESS || *status != CU_STREAM_CAPTURE_STATUS_ACTIVE) return result;
  if (id) *id = capture->id;
  if (graph) *graph = (CUgraph)capture->graph;
  if (dependencies) *dependencies = &capture->last;
  if (count) *count = capture->last != nullptr;
  return CUDA_SUCCESS;
}

DRIVER cuGraphInstantiateWithFlags(CUgraphExec *exec, CUgraph graph, unsigned long long) {
  ENTER(true);
  Graph *known = graph_of(graph);
  if (!known) return CUDA_ERROR_INVALID_VALUE;
  Exec *made = new Exec();
  for (auto &node : known->nodes) {
    made->number[node.get()] = made->nodes.size();
    made->nodes.push_back(node->node);
  }
  execs.insert(made);
  *exec = (CUgraphExec)made;
  return CUDA_SUCCESS;
}
DRIVER cuGraphLaunch(CUgraphExec exec, CUstream on) {
  ENTER(true);
  Stream *stream = nullptr;
  if (CUresult result = target_of(on, &stream)) return result;
  Exec *known = exec_of(exec);
  if (!known) return refuse(CUDA_ERROR_INVALID_VALUE, "launch of what is no graph, or was destroyed");
  if (stream->capture) return invalidate(stream, CUDA_ERROR_NOT_SUPPORTED, "a graph launched in a capture");
  if (known->last.first) give(stream, [] {}, {known->last});
  CUresult result = CUDA_SUCCESS;
  gathering = true;  // nothing runs before all is queued, so that nothing of another thread comes between
  for (auto node = known->nodes.begin(); node != known->nodes.end() && result == CUDA_SUCCESS; ++node)
    result = run(*node, stream);
  gathering = false;
  known->last = {stream, stream->given};
  start(stream);
  return result;
}
DRIVER cuGraphDestroy(CUgraph graph) {
  ENTER(true);
  if (!graph_of(graph)) return CUDA_ERROR_INVALID_VALUE;
  destroy((Graph *)graph);
  return CUDA_SUCCESS;
}
DRIVER cuGraphExecDestroy(CUgraphExec exec) {  // its queued launches have copies
  ENTER(true);
  if (!exec_of(exec)) return CUDA_ERROR_INVALID_VALUE;
  execs.erase((Exec *)exec);
  delete (Exec *)exec;
  return CUDA_SUCCESS;
}
DRIVER cuGraphGetNodes(CUgraph graph, CUgraphNode *nodes, size_t *count) {
  ENTER(true);
  Graph *known = graph_of(graph);
  if (!known) return CUDA_ERROR_INVALID_VALUE;
  for (size_t i = 0; nodes && i < *count; ++i)
    nodes[i] = i < known->nodes.size() ? (CUgraphNode)known->nodes[i].get() : nullptr;
  *count = nodes ? std::min(*count, known->nodes.size()) : known->nodes.size();
  return CUDA_SUCCESS;
}
DRIVER cuGraphNodeGetType(CUgraphNode node, CUgraphNodeType *type) {
  ENTER(true);
  GraphNode *known = node_of(node);
  if (!known) return CUDA_ERROR_INVALID_VALUE;
  *type = known->node.type;
  return CUDA_SUCCESS;
}

// CUDA 12 and newer call the second layout by the plain name, which old programs know as the first.
#undef cuGraphKernelNodeGetParams
#undef cuGraphExecKernelNodeSetParams
DRIVER cuGraphKernelNodeGetParams(CUgraphNode node, CUDA_KERNEL_NODE_PARAMS_v1 *parameters) {
  ENTER(true);
  return get_parameters(node, parameters);
}
DRIVER cuGraphKernelNodeGetParams_v2(CUgraphNode node, CUDA_KERNEL_NODE_PARAMS_v2 *parameters) {
  ENTER(true);
  return get_parameters(node, parameters);
}
DRIVER cuGraphExecKernelNodeSetParams(CUgraphExec exec, CUgraphNode node,
                                      const CUDA_KERNEL_NODE_PARAMS_v1 *given) {
  ENTER(true);
  return set_parameters(exec, node, given);
}
DRIVER cuGraphExecKernelNodeSetParams_v2(CUgraphExec exec, CUgraphNode node,
                                         const CUDA_KERNEL_NODE_PARAMS_v2 *given) {
  ENTER(true);
  return set_parameters(exec, node, given);
}
