package pseudoword

import (
	"context"
	"crypto/rand"
	"fmt"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	generationv1 "github.com/pseudoword/pseudoword/clients/go/gen/pseudoword/generation/v1"
)

// CreateBatch creates a batch: many pictures, drawn in the background into the server's object store. Its words are
// resolved now, and all its pictures use these versions.
func (c *Client) CreateBatch(ctx context.Context, batch *generationv1.Batch) (*generationv1.Batch, error) {
	created, err := c.Generation.CreateBatch(ctx, &generationv1.CreateBatchRequest{
		Parent: c.tenant, Batch: batch, RequestId: rand.Text(),
	})
	return created, FromCall(err)
}

// AwaitBatch waits until a batch has succeeded and returns it; it tolerates up to a minute of an unavailable server. A
// failed or cancelled batch is an *Error. onChange, if set, is called with the batch's current state, then with each
// change. Cancelling the context ends the wait, not the batch.
func (c *Client) AwaitBatch(
	ctx context.Context, name string, onChange func(*generationv1.Batch),
) (*generationv1.Batch, error) {
	var batch *generationv1.Batch
	err := follow(
		ctx,
		func(ctx context.Context) (grpc.ServerStreamingClient[generationv1.WatchBatchResponse], error) {
			return c.Generation.WatchBatch(ctx, &generationv1.WatchBatchRequest{Name: name})
		},
		func(message *generationv1.WatchBatchResponse) bool {
			batch = message.GetBatch()
			if onChange != nil {
				onChange(batch)
			}
			return batch.GetState() != generationv1.Batch_STATE_ACTIVE
		},
	)
	if err != nil {
		return nil, err
	}
	switch batch.GetState() {
	case generationv1.Batch_STATE_SUCCEEDED:
		return batch, nil
	case generationv1.Batch_STATE_FAILED:
		return nil, FromStatus(batch.GetError())
	default:
		cancelled := fromStatus(status.New(codes.Canceled, fmt.Sprintf("%s was cancelled", name)))
		cancelled.Reason = "BATCH_CANCELLED"
		return nil, cancelled
	}
}

// Batches returns the tenant's batches, newest first, without their prompts, blanks and words. filter is an AIP-160
// filter, such as "state = ACTIVE"; empty: all batches.
func (c *Client) Batches(ctx context.Context, filter string) ([]*generationv1.Batch, error) {
	var batches []*generationv1.Batch
	request := &generationv1.ListBatchesRequest{Parent: c.tenant, Filter: filter}
	for {
		page, err := c.Generation.ListBatches(ctx, request)
		if err != nil {
			return nil, FromCall(err)
		}
		batches = append(batches, page.GetBatches()...)
		if page.GetNextPageToken() == "" {
			return batches, nil
		}
		request.PageToken = page.GetNextPageToken()
	}
}

// CancelBatch cancels a batch; its finished pictures are kept.
func (c *Client) CancelBatch(ctx context.Context, name string) (*generationv1.Batch, error) {
	cancelled, err := c.Generation.CancelBatch(ctx, &generationv1.CancelBatchRequest{Name: name, RequestId: rand.Text()})
	return cancelled, FromCall(err)
}
