package pseudoword

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"iter"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	registryv1 "github.com/pseudoword/pseudoword/clients/go/gen/pseudoword/registry/v1"
	trainerv1 "github.com/pseudoword/pseudoword/clients/go/gen/pseudoword/trainer/v1"
)

const chunkBytes = 256 << 10

// LearnOptions are the options of Learn; the zero value has the server's defaults.
type LearnOptions struct {
	// Start is one or several words of the vocabulary that the vectors start from, such as "dog". Empty: the server's
	// default.
	Start string
	// AtOnce publishes the learned start's prediction as an initial version, before the training. OnEvent gets it as the
	// job's first_version. Learn returns the refined version.
	AtOnce bool
	// Kind is the kind of the concept. Unspecified: an object.
	Kind registryv1.ConceptKind
	// Vectors is the number of vectors of the word, 1 to 16; 0: 1.
	Vectors int32
	// Seed is the seed of all random numbers: equal seeds give equal vectors on one machine.
	Seed int64
	// OnEvent, if set, is called with each event of the job: changes of state and progress.
	OnEvent func(*trainerv1.JobEvent)
}

// Learn learns a word from pictures (PNG, JPEG, WebP, HEIC or AVIF files) and returns its new version. It waits until the
// job has ended, and tolerates up to a minute of an unavailable trainer. A failed or cancelled job is an *Error.
// Cancelling the context ends the wait, not the job.
func (c *Client) Learn(
	ctx context.Context, concept string, pictures [][]byte, options LearnOptions,
) (*registryv1.Version, error) {
	job := &trainerv1.Job{
		Concept:    c.concept(concept),
		Kind:       options.Kind,
		Vectors:    options.Vectors,
		Seed:       options.Seed,
		WordAtOnce: options.AtOnce,
	}
	if options.Start != "" {
		job.Start = &trainerv1.Start{Start: &trainerv1.Start_Words{Words: options.Start}}
	}
	for _, picture := range pictures {
		uploaded, err := c.Upload(ctx, picture)
		if err != nil {
			return nil, err
		}
		job.Examples = append(job.Examples, &trainerv1.Example{Picture: uploaded.GetName()})
	}
	created, err := c.Trainer.CreateJob(ctx, &trainerv1.CreateJobRequest{
		Parent: c.tenant, Job: job, RequestId: rand.Text(),
	})
	if err != nil {
		return nil, FromCall(err)
	}
	ended, err := c.await(ctx, created.GetName(), options.OnEvent)
	if err != nil {
		return nil, err
	}
	name, err := published(ended)
	if err != nil {
		return nil, err
	}
	version, err := c.Registry.GetVersion(ctx, &registryv1.GetVersionRequest{Name: name})
	return version, FromCall(err)
}

// Upload uploads one picture for a job; the same bytes give the same resource.
func (c *Client) Upload(ctx context.Context, picture []byte) (*trainerv1.Picture, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.Trainer.UploadPicture(ctx)
	if err != nil {
		return nil, FromCall(err)
	}
	for message := range uploadMessages(c.tenant, picture) {
		// io.EOF means that the server has ended the call; CloseAndRecv returns its response or error.
		if err := stream.Send(message); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, FromCall(err)
		}
	}
	uploaded, err := stream.CloseAndRecv()
	return uploaded, FromCall(err)
}

// uploadMessages yields the header, then the chunks of one picture.
func uploadMessages(tenant string, picture []byte) iter.Seq[*trainerv1.UploadPictureRequest] {
	return func(yield func(*trainerv1.UploadPictureRequest) bool) {
		digest := sha256.Sum256(picture)
		header := &trainerv1.UploadPictureRequest_Header{
			Parent: tenant, SizeBytes: int64(len(picture)), Sha256: hex.EncodeToString(digest[:]),
		}
		if !yield(&trainerv1.UploadPictureRequest{Message: &trainerv1.UploadPictureRequest_Header_{Header: header}}) {
			return
		}
		for len(picture) > 0 {
			size := min(chunkBytes, len(picture))
			chunk := &trainerv1.UploadPictureRequest_Chunk{Chunk: picture[:size]}
			if !yield(&trainerv1.UploadPictureRequest{Message: chunk}) {
				return
			}
			picture = picture[size:]
		}
	}
}

// await watches a job until it has ended.
func (c *Client) await(
	ctx context.Context, name string, onEvent func(*trainerv1.JobEvent),
) (*trainerv1.Job, error) {
	var job *trainerv1.Job
	err := follow(
		ctx,
		func(ctx context.Context) (grpc.ServerStreamingClient[trainerv1.WatchJobResponse], error) {
			return c.Trainer.WatchJob(ctx, &trainerv1.WatchJobRequest{Name: name})
		},
		func(message *trainerv1.WatchJobResponse) bool {
			if onEvent != nil {
				onEvent(message.GetEvent())
			}
			job = message.GetEvent().GetJob()
			return hasEnded(job)
		},
	)
	return job, err
}

func hasEnded(job *trainerv1.Job) bool {
	switch job.GetState() {
	case trainerv1.Job_STATE_SUCCEEDED, trainerv1.Job_STATE_FAILED, trainerv1.Job_STATE_CANCELLED:
		return true
	default:
		return false
	}
}

// published returns the name of the version that an ended job has published, or the job's error.
func published(job *trainerv1.Job) (string, error) {
	switch job.GetState() {
	case trainerv1.Job_STATE_SUCCEEDED:
		return job.GetVersion(), nil
	case trainerv1.Job_STATE_FAILED:
		return "", FromStatus(job.GetError())
	default:
		cancelled := fromStatus(status.New(codes.Canceled, fmt.Sprintf("%s was cancelled", job.GetName())))
		cancelled.Reason = "JOB_CANCELLED"
		return "", cancelled
	}
}
