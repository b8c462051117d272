// llama.cpp as a worker: one prefill a prompt, its cells shared with the other agents' sequences,
// all agents in one batch a step, each with a sampler of its own (temperature, then a draw).
//
//     llama_worker MODEL.gguf THREADS
//
// Reads a job a line: agents, tokens, temperature, seed, prompts, then each prompt's length and
// token ids. Answers a line: seconds to the last token, and to the first of the last prompt.

#include "llama.h"

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <sstream>
#include <string>
#include <vector>

namespace {

constexpr int kBatch = 2048, kMicroBatch = 512;

double now_s() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch())
        .count();
}

void fail(const char* why) {
    std::fprintf(stderr, "%s\n", why);
    std::exit(1);
}

// A batch of tokens, each of one sequence; those marked have logits afterwards.
struct Batch {
    llama_batch raw = llama_batch_init(kBatch, 0, 1);
    ~Batch() { llama_batch_free(raw); }

    void add(llama_token token, int position, int sequence, bool wanted) {
        const int i = raw.n_tokens++;
        raw.token[i] = token;
        raw.pos[i] = position;
        raw.n_seq_id[i] = 1;
        raw.seq_id[i][0] = sequence;
        raw.logits[i] = wanted;
    }

    void run(llama_context* context) {
        if (llama_decode(context, raw)) fail("llama_decode failed");
        llama_synchronize(context);
        raw.n_tokens = 0;
    }
};

struct Job {
    int agents, tokens;
    float temperature;
    unsigned seed;
    std::vector<std::vector<llama_token>> prompts;

    explicit Job(const std::string& line) {
        std::istringstream in(line);
        size_t count = 0, length = 0;
        in >> agents >> tokens >> temperature >> seed >> count;
        prompts.resize(count);
        for (auto& prompt : prompts) {
            in >> length;
            prompt.resize(length);
            for (auto& token : prompt) in >> token;
        }
        if (!in) fail("a job cannot be read");
    }

    int sequences() const { return agents * static_cast<int>(prompts.size()); }

    int cells() const {
        int sum = sequences() * tokens;
        for (const auto& prompt : prompts) sum += static_cast<int>(prompt.size());
        return sum + 256;
    }
};

// A context of the job's size: made before the clock starts, as a server would have it.
llama_context* context_for(llama_model* model, const Job& job, int threads) {
    llama_context_params params = llama_context_default_params();
    params.n_ctx = job.cells();
    params.n_batch = kBatch;
    params.n_ubatch = kMicroBatch;
    params.n_seq_max = job.sequences();
    params.n_threads = params.n_threads_batch = threads;
    params.kv_unified = true;  // agents share the cells of their prompt
    llama_context* context = llama_init_from_model(model, params);
    if (!context) fail("no context of this size");
    Batch batch;
    for (int i = 0; i < 16; ++i) batch.add(i + 1, i, 0, i == 15);
    batch.run(context);
    llama_memory_clear(llama_get_memory(context), false);
    return context;
}

void answer(llama_context* context, const Job& job) {
    std::vector<llama_sampler*> samplers;
    for (int i = 0; i < job.sequences(); ++i) {
        samplers.push_back(llama_sampler_chain_init(llama_sampler_chain_default_params()));
        llama_sampler_chain_add(samplers[i], llama_sampler_init_temp(job.temperature));
        llama_sampler_chain_add(samplers[i], llama_sampler_init_dist(job.seed * 1000 + i));
    }
    std::vector<llama_token> last(job.sequences());
    Batch batch;
    const double began = now_s();
    for (size_t p = 0; p < job.prompts.size(); ++p) {
        const auto& prompt = job.prompts[p];
        const int first = static_cast<int>(p) * job.agents, length = static_cast<int>(prompt.size());
        for (int i = 0; i < length; ++i) {
            batch.add(prompt[i], i, first, i == length - 1);
            if (batch.raw.n_tokens == kBatch && i < length - 1) batch.run(context);
        }
        batch.run(context);
        for (int a = 0; a < job.agents; ++a) {
            last[first + a] = llama_sampler_sample(samplers[first + a], context, -1);
            if (a) llama_memory_seq_cp(llama_get_memory(context), first, first + a, -1, -1);
        }
    }
    const double first_token = now_s();
    for (int step = 1; step < job.tokens; ++step) {
        for (int s = 0; s < job.sequences(); ++s) {
            const int length = static_cast<int>(job.prompts[s / job.agents].size());
            batch.add(last[s], length + step - 1, s, true);
        }
        batch.run(context);
        for (int s = 0; s < job.sequences(); ++s)
            last[s] = llama_sampler_sample(samplers[s], context, s);
    }
    const double ended = now_s();
    for (llama_sampler* sampler : samplers) llama_sampler_free(sampler);
    std::printf("%f %f\n", ended - began, first_token - began);
    std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 3) fail("usage: llama_worker MODEL.gguf THREADS");
    llama_backend_init();
    llama_model* model = llama_model_load_from_file(argv[1], llama_model_default_params());
    if (!model) fail("the model cannot be loaded");
    std::printf("ready\n");
    std::fflush(stdout);
    for (std::string line; std::getline(std::cin, line);) {
        const Job job(line);
        llama_context* context = context_for(model, job, std::atoi(argv[2]));
        answer(context, job);
        llama_free(context);
    }
    llama_model_free(model);
    return 0;
}
