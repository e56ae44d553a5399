/* A 3 x 3 x 3 convolution in float32 with a sixth of the multiplications: Winograd's F(4, 3) along x and y, F(2, 3)
   along z (Lavin & Gray, "Fast algorithms for convolutional neural networks", 2016). What `winograd.py` does by torch,
   a block of tiles at a time, so that all in between stays in a core's cache. `compiled.py` calls it. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define OUTPUTS 4     /* along x and y */
#define TILE 6        /* OUTPUTS + 2 */
#define MOST_PAIRS 16 /* of outputs along z in a block */
#define CHANNELS 16   /* their number is a multiple of it */
#define APART 16      /* numbers between matrices: at a multiple of 4096 bytes they would share one set of the cache */
#define ROOT_HALF 0.70710678118654752f
#define ROOT_TWO 1.41421356237309505f

/* All turns of a loop of so many at most, so that sums stay in registers. */
#if defined(__clang__)
#define UNROLL(n) _Pragma("clang loop unroll(full)")
#else
#define PRAGMA(text) _Pragma(#text)
#define UNROLL(n) PRAGMA(GCC unroll n)
#endif

/* On Windows gcc does not align vectors of 32 and 64 bytes on the stack. */
#if defined(__x86_64__) && !defined(_WIN32)
#define HAS_AVX 1
#else
#define HAS_AVX 0
#endif

/* Sizes are x, y, z; slabs lie (x, y, z, channel). `width`: output channels, filled up to whole panels. */
struct convolution {
    ptrdiff_t input[3], size[3], padding[3], in, out, width;
};

/* Output voxels from (x, y, z) on: tiles * 4 lines of pairs * 2 voxels, in 4 rows. */
struct block {
    ptrdiff_t x, y, z, tiles, pairs;
};

struct numbers {
    const float *source, *weights, *bias;
    float *result, *workspace;
};

/* Where the parts of a workspace begin, in numbers. */
struct workspace {
    ptrdiff_t rows, tiles, products, parts, zeros, end;
};

static struct workspace workspace_of(const struct convolution *c, ptrdiff_t tiles, ptrdiff_t pairs)
{
    ptrdiff_t m = tiles * pairs, depth = 2 * pairs + 2;
    struct workspace w = {0};
    w.tiles = w.rows + TILE * (OUTPUTS * tiles + 2) * depth * c->in;
    w.products = w.tiles + 4 * TILE * (m * c->in + APART);
    w.parts = w.products + 4 * TILE * (m * c->width + APART);
    w.zeros = w.parts + TILE * (8 * m * c->width + APART);
    w.end = w.zeros + depth * c->in;
    return w;
}

#if HAS_AVX
#define NAME(x) avx512_##x
#define TARGET __attribute__((target("avx512f")))
#define LANES 16
#define ROWS 12
#include "tiles.h"

#define NAME(x) avx2_##x
#define TARGET __attribute__((target("avx2,fma")))
#define LANES 8
#define ROWS 6
#include "tiles.h"
#endif

#define NAME(x) plain_##x
#define TARGET
#define LANES 4
#define ROWS 6
#include "tiles.h"

static int always(void)
{
    return 1;
}

#if HAS_AVX
static int has_avx512(void)
{
    return __builtin_cpu_supports("avx512f");
}

static int has_avx2(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}
#endif

/* Best first. */
static const struct {
    const char *name;
    ptrdiff_t panel;
    int (*is_here)(void);
    void (*block)(const struct convolution *, const struct numbers *, struct block);
} SETS[] = {
#if HAS_AVX
    {"avx512", 32, has_avx512, avx512_block},
    {"avx2", 16, has_avx2, avx2_block},
#endif
    {"plain", 8, always, plain_block},
};
#define NUM_SETS ((int)(sizeof SETS / sizeof SETS[0]))

static PyObject *instruction_sets(PyObject *self, PyObject *none)
{
    PyObject *found = PyDict_New();
    for (int i = 0; found != NULL && i < NUM_SETS; i++) {
        if (!SETS[i].is_here())
            continue;
        PyObject *panel = PyLong_FromSsize_t(SETS[i].panel);
        if (panel == NULL || PyDict_SetItemString(found, SETS[i].name, panel) < 0)
            Py_CLEAR(found);
        Py_XDECREF(panel);
    }
    return found;
}

static PyObject *workspace_numbers(PyObject *self, PyObject *args)
{
    struct convolution c = {0};
    ptrdiff_t tiles, pairs;
    if (!PyArg_ParseTuple(args, "nnnn", &c.in, &c.width, &tiles, &pairs))
        return NULL;
    return PyLong_FromSsize_t(workspace_of(&c, tiles, pairs).end);
}

static PyObject *filter_blocks(PyObject *self, PyObject *args)
{
    const char *name;
    struct convolution c;
    unsigned long long source, weights, bias, result, workspace;
    ptrdiff_t tiles, pairs, first, last;
    if (!PyArg_ParseTuple(args, "s(KKKKK)(nnn)(nnn)(nnn)(nnn)(nn)(nn)", &name, &source, &weights, &bias, &result,
                          &workspace, c.input, c.input + 1, c.input + 2, c.size, c.size + 1, c.size + 2, c.padding,
                          c.padding + 1, c.padding + 2, &c.in, &c.out, &c.width, &tiles, &pairs, &first, &last))
        return NULL;
    int set = 0;
    while (set < NUM_SETS && (strcmp(SETS[set].name, name) != 0 || !SETS[set].is_here()))
        set++;
    if (set == NUM_SETS)
        return PyErr_Format(PyExc_ValueError, "this processor or build has no instruction set %s", name);
    int fits = c.in > 0 && c.in % CHANNELS == 0 && c.out > 0 && c.out % CHANNELS == 0 && c.width >= c.out;
    fits = fits && c.width % SETS[set].panel == 0 && tiles > 0 && pairs > 0 && pairs <= MOST_PAIRS;
    if (!fits)
        return PyErr_Format(PyExc_ValueError, "no blocks of %zd x %zd tiles, %zd to %zd (%zd) channels", tiles, pairs,
                            c.in, c.out, c.width);
    struct numbers n = {(const float *)(uintptr_t)source, (const float *)(uintptr_t)weights,
                        (const float *)(uintptr_t)bias, (float *)(uintptr_t)result, (float *)(uintptr_t)workspace};
    ptrdiff_t lines = (c.size[1] + OUTPUTS * tiles - 1) / (OUTPUTS * tiles);
    ptrdiff_t depth = (c.size[2] + 2 * pairs - 1) / (2 * pairs);
    ptrdiff_t blocks = (c.size[0] + OUTPUTS - 1) / OUTPUTS * lines * depth;
    if (first < 0 || first > last || last > blocks)
        return PyErr_Format(PyExc_ValueError, "no blocks %zd to %zd of %zd", first, last, blocks);
    Py_BEGIN_ALLOW_THREADS
    for (ptrdiff_t k = first; k < last; k++) {
        struct block b = {OUTPUTS * (k / (lines * depth)), OUTPUTS * tiles * (k / depth % lines),
                          2 * pairs * (k % depth), tiles, pairs};
        SETS[set].block(&c, &n, b);
    }
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyMethodDef METHODS[] = {
    {"instruction_sets", instruction_sets, METH_NOARGS,
     "instruction_sets()\n--\n\nThose of this processor, the best first, with the output channels of a panel."},
    {"workspace_numbers", workspace_numbers, METH_VARARGS,
     "workspace_numbers(in, width, tiles, pairs, /)\n--\n\nfloat32 numbers that a thread needs for such blocks."},
    {"filter_blocks", filter_blocks, METH_VARARGS,
     "filter_blocks(instruction_set, addresses, size, size_after, padding, channels, block, blocks, /)\n--\n\n"
     "Fill the blocks from the first to before the last of a result. Addresses: source, weights, bias, result,\n"
     "workspace; channels: in, out, width; block: tiles, pairs. Nothing checks what lies at the addresses."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef MODULE = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "maisi.splitting._filtering",
    .m_doc = "Minimal filtering of float32 slabs, compiled.",
    .m_size = 0,
    .m_methods = METHODS,
};

PyMODINIT_FUNC PyInit__filtering(void)
{
    return PyModule_Create(&MODULE);
}
