// The functions of cuBLAS 12 and 13 that vdnn calls, by the types of their arguments; tests make a stub library of them.

typedef void *cublasHandle_t, *cudaStream_t;
typedef int cublasStatus_t, cublasMath_t, cublasPointerMode_t, cublasOperation_t;

cublasStatus_t cublasCreate_v2(cublasHandle_t *);
cublasStatus_t cublasDestroy_v2(cublasHandle_t);
cublasStatus_t cublasGetVersion_v2(cublasHandle_t, int *);
const char *cublasGetStatusString(cublasStatus_t);
cublasStatus_t cublasSetStream_v2(cublasHandle_t, cudaStream_t);
cublasStatus_t cublasSetWorkspace_v2(cublasHandle_t, void *, size_t);
cublasStatus_t cublasSetMathMode(cublasHandle_t, cublasMath_t);
cublasStatus_t cublasSetPointerMode_v2(cublasHandle_t, cublasPointerMode_t);
cublasStatus_t cublasSgemm_v2(
    cublasHandle_t, cublasOperation_t, cublasOperation_t, int, int, int, float *, float *, int, float *, int,
    float *, float *, int);
cublasStatus_t cublasDgemm_v2(
    cublasHandle_t, cublasOperation_t, cublasOperation_t, int, int, int, double *, double *, int, double *, int,
    double *, double *, int);
